//! What is known of paths that were called before: [`Known`] remembers how the table reads a path, and that an account may
//! call it. An app calls the same few paths again and again, and both are the same for all the life of a worker.
//!
//! SECURITY: that a call is allowed is remembered only where it was asked and said, for one account and method. Of any other
//! call no more is known than how its path is read, in one of a fixed number of places; a path that takes another one's
//! place costs that one what the first call did.

use std::cell::RefCell;

use http::Method;

use crate::credentials::AppId;
use crate::proxy::route::Action;

/// How many paths are known, at most. A power of two.
const PLACES: usize = 128;

/// The longest that is remembered. WeChat's longest documented one has about 60 bytes.
const LONGEST: usize = 128;

/// The paths of one worker.
#[derive(Clone, Default)]
pub(super) struct Known(RefCell<Vec<Option<Path>>>);

#[derive(Clone)]
struct Path {
    path: Box<str>,
    reading: (Action, bool),
    /// Who may call it, and how.
    allowed: Option<(Method, AppId)>,
}

/// What is known of a path, and where.
#[derive(Clone, Copy)]
pub(super) struct Found {
    /// What it needs, and whether it has no other reading than itself.
    pub(super) reading: Option<(Action, bool)>,
    place: usize,
}

impl Known {
    /// Looks a path up.
    pub(super) fn find(&self, path: &str) -> Found {
        let place = place(path);
        let paths = self.0.borrow();
        let known = paths.get(place).and_then(Option::as_ref).filter(|known| *known.path == *path);
        Found { reading: known.map(|known| known.reading), place }
    }

    /// Remembers how a path that was not known is read.
    pub(super) fn read(&self, found: Found, path: &str, action: Action, is_plain: bool) {
        if path.len() > LONGEST {
            return;
        }
        let mut paths = self.0.borrow_mut();
        if paths.is_empty() {
            paths.resize_with(PLACES, || None);
        }
        paths[found.place] = Some(Path { path: path.into(), reading: (action, is_plain), allowed: None });
    }

    /// Whether this account is known to be allowed to call the path that was found.
    pub(super) fn is_allowed(&self, found: Found, method: &Method, appid: &AppId) -> bool {
        let paths = self.0.borrow();
        let known = paths.get(found.place).and_then(Option::as_ref).filter(|_| found.reading.is_some());
        known.and_then(|known| known.allowed.as_ref()).is_some_and(|(how, who)| how == method && who == appid)
    }

    /// Remembers that it is.
    pub(super) fn allow(&self, found: Found, path: &str, method: &Method, appid: &AppId) {
        if let Some(Some(known)) = self.0.borrow_mut().get_mut(found.place)
            && *known.path == *path
        {
            known.allowed = Some((method.clone(), appid.clone()));
        }
    }
}

/// Where a path is, if it is known: by its length and its last eight bytes, in which paths of one API differ.
fn place(path: &str) -> usize {
    let bytes = path.as_bytes();
    let last = match bytes.last_chunk::<8>() {
        Some(last) => u64::from_le_bytes(*last),
        None => bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
    };
    let mixed = (last ^ (bytes.len() as u64) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 57) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_known_as_it_was_read_and_allowed_to_whom_it_was() {
        let known = Known::default();
        let (one, other) = (AppId::parse("wx1").unwrap(), AppId::parse("wx2").unwrap());
        let first = known.find("/cgi-bin/x");
        assert!(first.reading.is_none() && !known.is_allowed(first, &Method::GET, &one));
        known.read(first, "/cgi-bin/x", Action::AppendToken, true);
        let again = known.find("/cgi-bin/x");
        assert_eq!(again.reading, Some((Action::AppendToken, true)));
        assert!(!known.is_allowed(again, &Method::GET, &one), "read, but not allowed yet");
        known.allow(again, "/cgi-bin/x", &Method::GET, &one);
        assert!(known.is_allowed(again, &Method::GET, &one));
        assert!(
            !known.is_allowed(again, &Method::POST, &one) && !known.is_allowed(again, &Method::GET, &other)
        );
        assert!(
            !known.is_allowed(first, &Method::GET, &one),
            "of a path that was not found, nothing is known"
        );
    }

    #[test]
    fn a_path_that_takes_anothers_place_takes_nothing_else() {
        let known = Known::default();
        let appid = AppId::parse("wx1").unwrap();
        // The same length and end: the same place.
        let (path, twin) = ("/cgi-bin/a/get-user", "/cgi-bin/b/get-user");
        assert_eq!(place(path), place(twin));
        known.read(known.find(path), path, Action::AppendToken, true);
        known.allow(known.find(path), path, &Method::GET, &appid);
        let found = known.find(twin);
        assert!(found.reading.is_none() && !known.is_allowed(found, &Method::GET, &appid));
        known.read(found, twin, Action::KeepUserToken, false);
        known.allow(found, path, &Method::GET, &appid);
        assert!(
            !known.is_allowed(known.find(twin), &Method::GET, &appid),
            "only what was asked for is allowed"
        );
        assert!(known.find(path).reading.is_none());
        let long = format!("/{}", "a".repeat(LONGEST));
        known.read(known.find(&long), &long, Action::AppendToken, true);
        assert!(known.find(&long).reading.is_none(), "a long one is not remembered");
    }

    #[test]
    fn paths_of_one_api_have_places_of_their_own() {
        let paths = [
            "/cgi-bin/message/custom/send",
            "/cgi-bin/message/template/send",
            "/cgi-bin/user/info",
            "/cgi-bin/user/get",
            "/cgi-bin/menu/create",
            "/cgi-bin/ticket/getticket",
            "/wxa/getwxacodeunlimit",
            "/wxa/msg_sec_check",
            "/cgi-bin/message/subscribe/send",
            "/sns/jscode2session",
        ];
        let mut places: Vec<_> = paths.iter().map(|path| place(path)).collect();
        places.sort_unstable();
        places.dedup();
        assert!(places.len() >= paths.len() - 1, "{places:?}");
    }
}
