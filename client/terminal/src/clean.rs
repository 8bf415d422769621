//! Texts of others, before they are drawn. Nothing in them moves the cursor, sets a colour, takes more columns than it was
//! given, or turns around what stands beside it.

use unicode_width::UnicodeWidthChar as _;

/// What stands for a character that is not drawn.
const INSTEAD: char = '?';
/// What stands for the rest of a text that is too long.
const CUT: char = '…';
/// Scripts that run from right to left. A terminal that knows that turns the whole line around them.
const RIGHT_TO_LEFT: [std::ops::RangeInclusive<char>; 5] = [
    '\u{590}'..='\u{8ff}',
    '\u{fb1d}'..='\u{fdff}',
    '\u{fe70}'..='\u{feff}',
    '\u{10800}'..='\u{10fff}',
    '\u{1e800}'..='\u{1efff}',
];

/// A text in one line of at most so many columns. It reads no more of a long text than it draws.
pub(crate) fn clean(text: &str, columns: usize) -> String {
    let mut shown: Vec<(char, usize)> = Vec::new();
    let mut used = 0;
    for (character, width) in text.chars().map(drawable) {
        if used + width > columns {
            while used == columns {
                let Some((_, width)) = shown.pop() else {
                    return String::new();
                };
                used -= width;
            }
            shown.push((CUT, 1));
            break;
        }
        shown.push((character, width));
        used += width;
    }
    shown.into_iter().map(|(character, _)| character).collect()
}

/// The character itself or what stands for it, and how many columns it takes. Terminals agree about the width of ASCII, and of
/// letters and digits. About symbols, and what joins them, they do not.
fn drawable(character: char) -> (char, usize) {
    if character == ' ' || character.is_ascii_graphic() {
        return (character, 1);
    }
    let is_turned = RIGHT_TO_LEFT.iter().any(|script| script.contains(&character));
    match character.width() {
        Some(width @ 1..=2) if character.is_alphanumeric() && !is_turned => (character, width),
        Some(_) | None => (INSTEAD, 1),
    }
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    #[test]
    fn what_could_move_the_cursor_is_replaced() {
        for (found, shown) in [
            ("node-1", "node-1"),
            ("a b", "a b"),
            ("\x1b[2J\x1b[H", "?[2J?[H"),
            ("\u{9b}31mred", "?31mred"),
            ("a\r\n\tb\u{8}\u{7f}", "a???b??"),
            ("\x1b]0;title\x07", "?]0;title?"),
            // Turned around, joined to the character before, or without a width.
            ("\u{202e}gpj.exe\u{2066}", "?gpj.exe?"),
            ("a\u{300}\u{200b}\u{feff}\u{ad}", "a????"),
            ("שלום", "????"),
            // Two columns, and as many as a terminal likes.
            ("日本", "日本"),
            ("größer", "größer"),
            ("👩‍👩‍👧", "?????"),
            ("\u{e0041}\u{fe0f}", "??"),
        ] {
            assert_eq!(clean(found, 40), shown, "{found:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_cut_where_its_columns_end() {
        for (found, columns, shown) in [
            ("abcdef", 6, "abcdef"),
            ("abcdef", 5, "abcd…"),
            ("abcdef", 1, "…"),
            ("abcdef", 0, ""),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("日本語", 1, "…"),
            ("", 3, ""),
        ] {
            assert_eq!(clean(found, columns), shown, "{found:?} in {columns}");
        }
        let long = "x".repeat(10_000_000);
        assert_eq!(clean(&long, 80).width(), 80);
    }

    #[test]
    fn no_character_takes_more_columns_than_it_was_given() {
        for character in (0..=0x10_ffff).filter_map(char::from_u32) {
            let shown = clean(&character.to_string(), 2);
            assert!(
                shown.width() <= 2 && !shown.chars().any(char::is_control),
                "{character:?}"
            );
        }
    }
}
