//! Dependency files: the Makefile rules that `gcc -MD` writes.

/// The prerequisites of all rules, in their order. Escapes are those that GCC and Clang write: a backslash before a space, `#` or a
/// line end, and `$$`.
pub(crate) fn prerequisites(text: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let (mut word, mut is_target) = (Vec::new(), true);
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek().copied()) {
            (b'\\', Some(b' ' | b'#')) | (b'$', Some(b'$')) => word.extend(bytes.next()),
            (b'\\', Some(b'\n')) => {
                bytes.next();
                end_word(&mut word, is_target, &mut found);
            }
            (b':', None | Some(b' ' | b'\t' | b'\n')) if is_target => {
                is_target = false;
                word.clear();
            }
            (b' ' | b'\t', _) => end_word(&mut word, is_target, &mut found),
            (b'\n', _) => {
                end_word(&mut word, is_target, &mut found);
                is_target = true;
            }
            _ => word.push(byte),
        }
    }
    end_word(&mut word, is_target, &mut found);
    found
}

fn end_word(word: &mut Vec<u8>, is_target: bool, found: &mut Vec<Vec<u8>>) {
    let word = std::mem::take(word);
    if !is_target && !word.is_empty() {
        found.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::prerequisites;

    #[test]
    fn prerequisites_are_unescaped() {
        for (text, expected) in [
            ("a.o: a.c b.h\n", &["a.c", "b.h"][..]),
            ("a.o x.o: a.c \\\n  /usr/include/b.h \\\n c.h\n\nb.h:\nc.h:\n", &["a.c", "/usr/include/b.h", "c.h"]),
            ("a.o: my\\ file.c a\\#b.h c$$d.h x:y.h\n", &["my file.c", "a#b.h", "c$d.h", "x:y.h"]),
            ("c:/a.o: b\\c.c", &["b\\c.c"]),
            ("a.o:", &[]),
            ("a.o a.c", &[]),
            ("", &[]),
        ] {
            let found: Vec<_> =
                prerequisites(text.as_bytes()).into_iter().map(|word| String::from_utf8(word).unwrap()).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
