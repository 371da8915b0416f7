//! What a user most likely meant by a name that is none.

/// The name a user most likely meant, if one is near.
pub(in crate::config) fn nearest<'a>(written: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_ascii_lowercase().replace('-', "_");
    names
        .map(|name| (distance(&written, name), name))
        .filter(|(distance, name)| {
            *distance <= (name.len() / 3).max(1) || (name.len() >= 5 && written.contains(name))
        })
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's: how many characters to add, drop or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
