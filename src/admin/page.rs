//! The page for people at `/`: one HTML file with its style and its script inside, which asks `/status` again and again.
//!
//! SECURITY: nothing but these two runs there, by their hashes (Content-Security-Policy); what the page shows is put in
//! as text, since an errmsg may be anything.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The page and the policy it goes with.
#[derive(Debug)]
pub struct Page {
    /// The whole document.
    pub html: String,
    /// What a browser may do with it.
    pub policy: String,
}

impl Page {
    /// Puts it together.
    #[must_use]
    pub fn new() -> Self {
        let html = HTML.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
        let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT)
        );
        Self { html, policy }
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_asks_nobody_else() {
        let page = Page::new();
        assert!(page.html.contains(STYLE) && page.html.contains(SCRIPT));
        assert!(!page.html.contains("/*S"), "both are in");
        let outside: Vec<_> = page
            .html
            .match_indices("http")
            .map(|(at, _)| &page.html[at..(at + 40).min(page.html.len())])
            .filter(|link| link.contains("://") && !link.starts_with("http://www.w3.org/2000/svg"))
            .collect();
        assert!(outside.is_empty(), "{outside:?}");
        for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!SCRIPT.contains(markup), "{markup}");
        }
    }
}
