//! How long the file should be, as redb's header says.
//!
//! After a crash redb goes by the file's length and not by its header, and panics over one that was cut short. It makes
//! a file longer before the header says so, durably, and shorter only after: a file that is shorter than its header says
//! has lost something, crash or not.

/// Field offsets in the header of redb's file format 3.
const MAGIC: &[u8; 9] = b"redb\x1A\x0A\xA9\x0D\x0A";
const PAGE_SIZE: usize = 12;
const REGION_HEADER_PAGES: usize = 16;
const REGION_DATA_PAGES: usize = 20;
const FULL_REGIONS: usize = 24;
const TRAILING_DATA_PAGES: usize = 28;
pub(super) const LEN: usize = 32;

/// Bytes of the layout in a header whose own checksum is right. None if redb has not finished making the file.
pub(super) fn stored_len(header: &[u8; LEN]) -> Option<u64> {
    if !header.starts_with(MAGIC) {
        return None;
    }
    let number = |at: usize| {
        let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        u64::from(u32::from_le_bytes(bytes))
    };
    let region = |data_pages: u64| number(REGION_HEADER_PAGES) + data_pages;
    let trailing = match number(TRAILING_DATA_PAGES) {
        0 => 0,
        data_pages => region(data_pages),
    };
    let full = number(FULL_REGIONS).saturating_mul(region(number(REGION_DATA_PAGES)));
    let pages = full.saturating_add(trailing).saturating_add(1);
    Some(pages.saturating_mul(number(PAGE_SIZE)))
}
