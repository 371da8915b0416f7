//! Holds README.zh-CN.md to README.md: the same sections, and in each the same paragraphs, list items, code and tables.
//! Words differ; what is the same in both languages may not: code, links, and numbers of three digits and more. So
//! whoever changes one of them is told what is missing in the other.
//!
//! A heading of the translation has, in a line of its own before it, the anchor of the English one
//! (`<a id="try-it"></a>`), by which it is found, and to which links lead in both.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const ENGLISH: &str = "README.md";
const CHINESE: &str = "README.zh-CN.md";

#[test]
fn both_readmes_say_the_same() {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        fs::read_to_string(path).expect("a README stands at the top of the repository")
    };
    super::report(differences(&read(ENGLISH), &read(CHINESE)).into_iter());
}

/// What the translation lacks, or has besides; in each section the first of it.
fn differences(english: &str, chinese: &str) -> Vec<String> {
    let (english, chinese) = (sections(english, slug), sections(chinese, |_| String::new()));
    let mut found = Vec::new();
    for section in &chinese {
        if section.anchor.is_empty() {
            found.push(format!(
                "{CHINESE}: \"{}\" has no <a id=\"...\"></a> in a line before it; give it the anchor of its heading in \
                 {ENGLISH}",
                section.heading
            ));
        } else if !english.iter().any(|known| known.anchor == section.anchor) {
            found.push(format!(
                "{CHINESE}: \"{}\" (#{}) is no section of {ENGLISH}",
                section.heading, section.anchor
            ));
        }
    }
    let mut last = None;
    for section in &english {
        let Some(at) = chinese.iter().position(|other| other.anchor == section.anchor) else {
            found.push(format!(
                "{CHINESE} lacks the section \"{}\": translate it, with <a id=\"{}\"></a> before its heading",
                section.heading, section.anchor
            ));
            continue;
        };
        let other = &chinese[at];
        if last.is_some_and(|last| at < last) {
            found.push(format!("{CHINESE}: \"{}\" stands elsewhere than in {ENGLISH}", other.heading));
        }
        last = Some(at);
        if level(&section.heading) != level(&other.heading) {
            found.push(format!("{CHINESE}: \"{}\" is not as deep as \"{}\"", other.heading, section.heading));
        }
        found.extend(difference(section, other));
    }
    found
}

/// The first difference between a section and its translation.
fn difference(english: &Section, chinese: &Section) -> Option<String> {
    let place = format!("{CHINESE}, \"{}\" (\"{}\")", chinese.heading, english.heading);
    for (n, block) in english.blocks.iter().enumerate() {
        let Some(other) = chinese.blocks.get(n) else {
            return Some(format!("{place} lacks {}", block.shown()));
        };
        if block.kind != other.kind {
            return Some(format!("{place} has {} where {ENGLISH} has {}", other.shown(), block.shown()));
        }
        if block.kind == Kind::Verbatim {
            if block.text != other.text {
                return Some(format!("{place} has another text in {}; copy it", block.shown()));
            }
            continue;
        }
        let (marks, others) = (marks(&block.text), self::marks(&other.text));
        let lacks: Vec<_> = marks.difference(&others).cloned().collect();
        let besides: Vec<_> = others.difference(&marks).cloned().collect();
        if !lacks.is_empty() || !besides.is_empty() {
            return Some(format!(
                "{place}: {} is {} there, which lacks [{}] and has besides [{}]",
                block.shown(),
                other.shown(),
                lacks.join(" "),
                besides.join(" ")
            ));
        }
    }
    let besides = chinese.blocks.get(english.blocks.len())?;
    Some(format!("{place} has {}, which {ENGLISH} has not", besides.shown()))
}

struct Section {
    heading: String,
    anchor: String,
    blocks: Vec<Block>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Paragraph,
    Item,
    Row,
    /// Code, and what stands between marks of a generator: the same to the letter.
    Verbatim,
}

struct Block {
    kind: Kind,
    text: String,
}

impl Block {
    /// Its kind and its beginning.
    fn shown(&self) -> String {
        let kind = match self.kind {
            Kind::Paragraph => "the paragraph",
            Kind::Item => "the list item",
            Kind::Row => "the table row",
            Kind::Verbatim => "the block",
        };
        let begin: String = self.text.trim().chars().take(60).collect();
        format!("{kind} \"{}...\"", begin.replace('\n', " "))
    }
}

/// Markdown by its headings; what stands before the first is a section of its own. `anchor` is of a heading that has none
/// in a line before it.
fn sections(text: &str, anchor: impl Fn(&str) -> String) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut given = None;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let verbatim = if line.trim_start().starts_with("```") {
            Some("```")
        } else {
            line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")).map(|_| "<!-- /")
        };
        if let Some(id) = line.strip_prefix("<a id=\"").and_then(|rest| rest.strip_suffix("\"></a>")) {
            given = Some(id.to_owned());
        } else if let Some(end) = verbatim {
            let mut text = line.to_owned();
            for line in lines.by_ref() {
                text.push('\n');
                text.push_str(line);
                if line.trim_start().starts_with(end) {
                    break;
                }
            }
            add(&mut sections, Kind::Verbatim, &text);
        } else if line.starts_with('#') {
            let anchor = given.take().unwrap_or_else(|| anchor(line));
            sections.push(Section { heading: line.to_owned(), anchor, blocks: Vec::new() });
        } else if line.starts_with('|') {
            add(&mut sections, Kind::Row, line);
        } else if let Some(kind) = begins(line) {
            let mut text = line.to_owned();
            // It goes on until something else begins.
            while let Some(next) = lines.next_if(|next| {
                let other = next.starts_with(['#', '|', '<']) || next.trim_start().starts_with("```");
                !other && !next.trim().is_empty() && begins(next) != Some(Kind::Item)
            }) {
                text.push('\n');
                text.push_str(next);
            }
            add(&mut sections, kind, &text);
        }
    }
    sections
}

/// What a line of text begins.
fn begins(line: &str) -> Option<Kind> {
    let text = line.trim_start();
    let numbered = text.trim_start_matches(|c: char| c.is_ascii_digit());
    match text {
        "" => None,
        _ if text.starts_with("- ") || (numbered != text && numbered.starts_with(". ")) => Some(Kind::Item),
        _ => Some(Kind::Paragraph),
    }
}

fn add(sections: &mut Vec<Section>, kind: Kind, text: &str) {
    if sections.is_empty() {
        sections.push(Section { heading: String::new(), anchor: "top".to_owned(), blocks: Vec::new() });
    }
    if let Some(section) = sections.last_mut() {
        section.blocks.push(Block { kind, text: text.to_owned() });
    }
}

/// What GitHub makes of a heading.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn level(heading: &str) -> usize {
    heading.chars().take_while(|c| *c == '#').count()
}

/// What is the same in every language: code, where links lead, and numbers of three digits and more.
fn marks(text: &str) -> BTreeSet<String> {
    let mut marks = BTreeSet::new();
    let mut rest = String::new();
    for (n, part) in text.split('`').enumerate() {
        if n % 2 == 1 {
            // A line may end within code.
            marks.insert(format!("`{}`", part.split_whitespace().collect::<Vec<_>>().join(" ")));
        } else {
            rest.push_str(part);
            rest.push(' ');
        }
    }
    for (at, _) in rest.match_indices("](") {
        let target = &rest[at + 2..];
        marks.insert(target.split(')').next().unwrap_or(target).to_owned());
    }
    let digits = |c: char| !c.is_ascii_digit() && c != ',' && c != '.';
    let numbers = rest.split(digits).map(|number| number.trim_matches([',', '.']));
    marks.extend(numbers.filter(|number| number.len() > 2).map(str::to_owned));
    marks
}

// That it can fail.

#[test]
fn what_the_translation_lacks_is_told() {
    const TEXT: &str = "# x\nOne `a` of 40001.\n\n## Try it\n- one\n- `two`\n  goes on\n\n```sh\nrun\n```\n\n| K | V |\n|---|---|\n| `k` | v |\n";
    const SAME: &str = "<a id=\"x\"></a>\n# 某\n40001 的一个 `a`。\n\n<a id=\"try-it\"></a>\n## 试试\n- 一\n- `two`\n\n```sh\nrun\n```\n\n| 键 | 值 |\n|---|---|\n| `k` | 值 |\n";
    assert_eq!(differences(TEXT, SAME), Vec::<String>::new());
    for (from, to, told) in [
        ("<a id=\"try-it\"></a>\n", "", "lacks the section \"## Try it\""),
        ("## 试试", "### 试试", "is not as deep"),
        ("`a`", "a", "lacks [`a`]"),
        ("40001", "42001", "lacks [40001] and has besides [42001]"),
        ("- 一\n", "", "lacks [] and has besides [`two`]"),
        ("run\n", "run it\n", "has another text"),
        ("| `k` | 值 |\n", "", "lacks the table row \"| `k` | v |...\""),
        ("- `two`\n", "- `two`\n\n又一段\n", "where README.md has"),
        ("| `k` | 值 |\n", "| `k` | 值 |\n| `l` | 值 |\n", "which README.md has not"),
    ] {
        let changed = SAME.replace(from, to);
        assert_ne!(changed, SAME, "{from}");
        let found = differences(TEXT, &changed).join("\n");
        assert!(found.contains(told), "{from}: {found}");
    }
    let swapped = "<a id=\"try-it\"></a>\n## 试试\n<a id=\"x\"></a>\n# 某\n";
    assert!(differences(TEXT, swapped).join("\n").contains("stands elsewhere"));
}
