//! Globs over endpoint ids, as routes and the books' tables of names have them.

/// Whether `text` is `glob`, in which each `*` stands for any characters, none included.
#[must_use]
pub fn matches_glob(glob: &str, text: &str) -> bool {
    let mut parts = glob.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty(); // no star
    };
    // The earliest place for each part leaves the most for those behind it.
    for part in parts {
        match rest.split_once(part) {
            Some((_, behind)) => rest = behind,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stands_for_anything_and_for_nothing() {
        for (glob, text, is) in [
            ("*", "", true),
            ("*", "vpce-1", true),
            ("vpce-0a*", "vpce-0a", true),
            ("vpce-0a*", "vpce-0A1", false),
            ("vpce-0a*", "avpce-0a", false),
            ("*1", "vpce-11", true),
            ("v*-*1", "vpce-0121", true),
            ("v*-*1", "vpce-012", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a**b", "ab", true),
            ("vpce-1", "vpce-12", false),
            ("", "a", false),
        ] {
            assert_eq!(matches_glob(glob, text), is, "{glob} {text}");
        }
    }

    /// By definition, and slowly.
    fn plainly(glob: &[u8], text: &[u8]) -> bool {
        match (glob, text) {
            ([], []) => true,
            ([b'*', glob_rest @ ..], _) => {
                plainly(glob_rest, text)
                    || text
                        .split_first()
                        .is_some_and(|(_, rest)| plainly(glob, rest))
            }
            ([a, glob @ ..], [b, text @ ..]) if a == b => plainly(glob, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn globs_match_as_they_are_defined(glob in "[ab*]{0,7}", text in "[ab]{0,9}") {
            prop_assert_eq!(matches_glob(&glob, &text), plainly(glob.as_bytes(), text.as_bytes()));
        }
    }
}
