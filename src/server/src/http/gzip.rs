//! Bodies for those who take them compressed: a page of metrics shrinks to a tenth.

use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

/// Whether `gzip` is on the list and not ruled out by a weight of zero.
pub(super) fn accepted(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(ACCEPT_ENCODING).iter();
    lists.filter_map(|list| list.to_str().ok()).any(|list| {
        list.split(',').any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
            let weight = parts.find_map(|part| part.strip_prefix("q="));
            named && weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|weight| weight > 0.0))
        })
    })
}

pub(super) fn compress(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    out.write_all(body)?;
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn takes(list: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, list.parse().unwrap());
        accepted(&headers)
    }

    #[test]
    fn gzip_is_used_where_it_is_asked_for() {
        for list in ["gzip", "deflate, GZIP", "gzip;q=0.5, identity"] {
            assert!(takes(list), "{list}");
        }
        for list in ["", "identity", "gzip;q=0", "br, gzip; q=0.0", "x-gzip-like"] {
            assert!(!takes(list), "{list}");
        }
        assert!(!accepted(&HeaderMap::new()));
    }

    #[test]
    fn compressed_pages_read_back() {
        let page = b"etcd_server_has_leader 1\n".repeat(100);
        let zipped = compress(&page).unwrap();
        assert!(zipped.len() < page.len() / 10);
        let mut back = Vec::new();
        flate2::read::GzDecoder::new(zipped.as_slice())
            .read_to_end(&mut back)
            .unwrap();
        assert_eq!(back, page);
    }
}
