//! Makes a usable `:authority` of one that is a whole URL.
//!
//! etcd's client library 3.4 sends `:authority: http://127.0.0.1:2379` for Status, HashKV and Defragment when an endpoint
//! is given with its scheme. Go's server does not look at it; our HTTP/2 library refuses the call before anybody hears
//! of it. So `://` is replaced in the header block on its way in, by letters whose codes are of the same length:
//! `httpB--127.0.0.1:2379` names no host, which is right, since nothing may depend on it.
//!
//! To find the value no header has to be decoded: the representations of a block say how long they are (RFC 7541, §6).
//! What the library puts into its dynamic table is the replaced value, so later references to it are good as well.
//!
//! Limit: the value is recognised when its first bytes come in the same read as the start of the block, as they do from
//! a client that writes its headers in one go. Otherwise the call is reset, as any with a malformed authority.

const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// What the priority fields take before the block.
const PRIORITY_LEN: usize = 5;

/// The index of `:authority` in the static table.
const AUTHORITY: usize = 1;
/// The entries of the static table that are no pseudo-headers. Those come first, so one of these ends the search.
const REGULAR: std::ops::RangeInclusive<usize> = 15..=61;

/// Looks for the authority in `payload`, the first bytes of a HEADERS frame that is `frame_len` long.
pub(crate) fn repair(flags: u8, frame_len: usize, payload: &mut [u8]) {
    let mut start = 0;
    let mut end = payload.len();
    if flags & PADDED != 0 {
        let Some(padding) = payload.first() else { return };
        end = end.min(frame_len.saturating_sub(usize::from(*padding)));
        start += 1;
    }
    if flags & PRIORITY != 0 {
        start += PRIORITY_LEN;
    }
    let Some(block) = payload.get_mut(start..end) else {
        return;
    };
    let mut walk = Walk { block, at: 0 };
    if let Some((at, is_huffman)) = walk.authority() {
        let value = &mut block[at..];
        if is_huffman {
            replace_coded(value);
        } else {
            replace_plain(value);
        }
    }
}

/// A walk over the representations of a header block.
struct Walk<'a> {
    block: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    /// Where the value of the literal `:authority` begins, and whether it is Huffman-coded.
    fn authority(&mut self) -> Option<(usize, bool)> {
        loop {
            let first = *self.block.get(self.at)?;
            let name_bits = if first & 0x80 != 0 {
                // Name and value from a table: nothing in here to replace.
                let index = self.integer(7)?;
                if index == AUTHORITY || REGULAR.contains(&index) {
                    return None;
                }
                continue;
            } else if first & 0x40 != 0 {
                6
            } else if first & 0x20 != 0 {
                // The size of the dynamic table.
                self.integer(5)?;
                continue;
            } else {
                4
            };
            let name = self.integer(name_bits)?;
            // A name that is spelt out is none of a pseudo-header.
            if name == 0 || REGULAR.contains(&name) {
                return None;
            }
            let is_huffman = *self.block.get(self.at)? & 0x80 != 0;
            let len = self.integer(7)?;
            if name == AUTHORITY {
                return Some((self.at, is_huffman));
            }
            self.at = self.at.checked_add(len)?;
        }
    }

    /// An integer whose first byte has so many bits of it (RFC 7541, §5.1). `None` for one that ends beyond these bytes
    /// or is longer than any frame.
    fn integer(&mut self, bits: u32) -> Option<usize> {
        let mask = (1 << bits) - 1;
        let mut value = usize::from(*self.block.get(self.at)? & mask);
        self.at += 1;
        if value < usize::from(mask) {
            return Some(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = *self.block.get(self.at)?;
            self.at += 1;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

fn replace_plain(value: &mut [u8]) {
    for scheme in ["http", "https"] {
        let rest = value.strip_prefix(scheme.as_bytes());
        if rest.is_some_and(|rest| rest.starts_with(b"://")) {
            value[scheme.len()..scheme.len() + 3].copy_from_slice(b"B--");
            return;
        }
    }
}

/// Huffman codes in a row, from the highest bit down (RFC 7541, appendix B).
#[derive(Clone, Copy)]
struct Coded {
    bits: u64,
    len: u32,
}

impl Coded {
    const fn of(text: &[u8]) -> Self {
        let mut coded = Coded { bits: 0, len: 0 };
        let mut i = 0;
        while i < text.len() {
            let (code, len): (u64, u32) = match text[i] {
                b'h' => (0b100111, 6),
                b't' => (0b01001, 5),
                b'p' => (0b101011, 6),
                b's' => (0b01000, 5),
                b':' => (0b1011100, 7),
                b'B' => (0b1011101, 7),
                b'/' => (0b011000, 6),
                b'-' => (0b010110, 6),
                _ => panic!("no scheme has this letter"),
            };
            coded.len += len;
            coded.bits |= code << (64 - coded.len);
            i += 1;
        }
        coded
    }
}

const CODED: [(Coded, Coded); 2] = [
    (Coded::of(b"http://"), Coded::of(b"httpB--")),
    (Coded::of(b"https://"), Coded::of(b"httpsB--")),
];

fn replace_coded(value: &mut [u8]) {
    let mut head = [0; 8];
    let have = value.len().min(head.len());
    head[..have].copy_from_slice(&value[..have]);
    let bits = u64::from_be_bytes(head);
    for (scheme, replacement) in CODED {
        let mask = !(u64::MAX >> scheme.len);
        if have * 8 >= scheme.len as usize && bits & mask == scheme.bits {
            let bits = bits & !mask | replacement.bits;
            value[..have].copy_from_slice(&bits.to_be_bytes()[..have]);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Header blocks as Go's encoder writes them: method, scheme, path, the authority of the name, and two more.
    const HTTP: &str = "8386459760a924882d9dcb6571afa066a925a87510ac6e48d36a3f418f9d29aee30c044eae05c0b86e09975f\
                        5f8b1d75d0620d263d4c4d656440027465864d833505b11f";
    const HTTP_REPAIRED: &str = "8386459760a924882d9dcb6571afa066a925a87510ac6e48d36a3f418f9d29aeeacb044eae05c0b86e09\
                                 975f5f8b1d75d0620d263d4c4d656440027465864d833505b11f";
    const PLAIN: &str = "8386459760a924882d9dcb6571afa066a925a87510ac6e48d36a3f418a089d5c0b8170dc132ebf5f8b1d75d0620d26\
                         3d4c4d656440027465864d833505b11f";
    /// The second request of a connection, all of it from tables.
    const AGAIN: &str = "8386c1c0bfbe";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<char> = hex.chars().collect();
        let byte = |pair: &[char]| u8::from_str_radix(&String::from_iter(pair), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn repaired(flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = payload.to_vec();
        repair(flags, payload.len(), &mut out);
        out
    }

    /// A block with nothing but an authority, not Huffman-coded.
    fn plain(value: &str) -> Vec<u8> {
        let mut block = vec![0x83, 0x41, value.len() as u8];
        block.extend_from_slice(value.as_bytes());
        block
    }

    #[test]
    fn a_scheme_is_replaced_in_what_go_sends() {
        assert_eq!(repaired(0, &bytes(HTTP)), bytes(HTTP_REPAIRED));
        // https://127.0.0.1:2379 and https://[::1]:2379, to httpsB--…
        for value in ["9d29ad1718602275702e05c3704cbaff", "9d29ad171863ff772e07ff9704cbafff"] {
            let block = [vec![0x83, 0x41, 0x80 | 16], bytes(value)].concat();
            let out = repaired(0, &block);
            assert_eq!(out[..7], block[..7]);
            // 27 bits of `https`; then `:` to `B`, `/` to `-` twice: 1011100 011000 011000 to 1011101 010110 010110.
            let bits = |from: &[u8]| u64::from_be_bytes(from[3..11].try_into().unwrap()) << 27 >> (64 - 19);
            assert_eq!(bits(&block), 0b1011100 << 12 | 0b011000 << 6 | 0b011000);
            assert_eq!(bits(&out), 0b1011101 << 12 | 0b010110 << 6 | 0b010110);
            assert_eq!(out[9..], block[9..], "what follows the scheme is as it was");
        }
    }

    #[test]
    fn a_scheme_is_replaced_in_plain_text() {
        assert_eq!(repaired(0, &plain("http://a:1")), plain("httpB--a:1"));
        assert_eq!(repaired(0, &plain("https://[::1]:1")), plain("httpsB--[::1]:1"));
        // Never indexed, without indexing, and after a change of the table's size.
        for first in [&[0x11][..], &[0x01], &[0x3f, 0xe1, 0x1f, 0x41]] {
            let block = |value: &str| [first, &[value.len() as u8], value.as_bytes()].concat();
            assert_eq!(repaired(0, &block("http://a:1")), block("httpB--a:1"));
        }
    }

    #[test]
    fn padding_and_priority_are_passed_over() {
        let wrap = |block: &[u8]| [&[3][..], &[0, 0, 0, 0, 7], block, &[0, 0, 0]].concat();
        assert_eq!(
            repaired(PADDED | PRIORITY, &wrap(&bytes(HTTP))),
            wrap(&bytes(HTTP_REPAIRED))
        );
        let padding_only = [&[12][..], &plain("http://x:")[1..]].concat();
        assert_eq!(repaired(PADDED, &padding_only), padding_only, "padding is no header");
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        let long = "x".repeat(120);
        let blocks = [
            bytes(PLAIN),
            bytes(AGAIN),
            bytes(HTTP_REPAIRED),
            plain("http"),
            plain("http:80"),
            plain("https:443"),
            plain("httpx://a"),
            plain("a/http://"),
            plain(&long),
            // A path that looks like one, then an ordinary authority.
            [&[0x04, 9][..], b"http://ab", &plain("b:1")[1..]].concat(),
            // An authority after an ordinary header is none.
            [&[0x5f, 1, b'x'][..], &plain("http://a")[1..]].concat(),
            vec![0x81],
            vec![0x41],
            vec![0x41, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            vec![0x45, 0x7f, 0xff, 0xff, 0xff, 0x7f, 0x41, 0x07],
            Vec::new(),
        ];
        for block in blocks {
            for flags in [0, PADDED, PRIORITY, PADDED | PRIORITY] {
                let shift: &[u8] = match flags {
                    PADDED => &[0],
                    PRIORITY => &[0; 5],
                    0 => &[],
                    _ => &[0; 6],
                };
                let payload = [shift, &block].concat();
                assert_eq!(repaired(flags, &payload), payload);
            }
        }
    }

    #[test]
    fn part_of_a_block_is_enough_if_it_has_the_scheme() {
        let (whole, good) = (bytes(HTTP), bytes(HTTP_REPAIRED));
        // The coded value begins at 29, and its scheme takes 41 bits.
        for len in 0..whole.len() {
            let mut part = whole[..len].to_vec();
            repair(0, whole.len(), &mut part);
            let expected = if len >= 29 + 6 { &good[..len] } else { &whole[..len] };
            assert_eq!(part, expected, "{len} bytes");
        }
    }
}
