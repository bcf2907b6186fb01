//! Damage that no checksum tells, for tests of what finds it.

use std::path::Path;

use redb::ReadableTable;

use super::change::RowId;
use super::disk::{FilePlace, Patient, Place};
use super::error::{During, Error};
use super::{database, format};

const CACHE_BYTES: usize = 1 << 20;

/// Flips a bit of the value that `revision` put, in a file that nobody has open, and makes all checksums fit. False: there
/// is no such value.
pub fn falsify(path: &Path, revision: i64) -> Result<bool, Error> {
    let Some(disk) = FilePlace::new(path).current()? else {
        return Ok(false);
    };
    let db = database::open(Patient::new(disk, 0), CACHE_BYTES)?.db;
    let write = database::begin(&db)?;
    let id = RowId { main: revision, sub: 0 };
    {
        let mut values = write.open_table(format::VALUES).during("open table values")?;
        let stored = values.get(id).during("read a value")?;
        let Some(mut value) = stored
            .map(|stored| format::decode_value(id, stored.value()).map(<[u8]>::to_vec))
            .transpose()?
            .filter(|value| !value.is_empty())
        else {
            return Ok(false);
        };
        value[0] ^= 1;
        let mut sealed = Vec::new();
        format::encode_value(id, &value, &mut sealed);
        values.insert(id, sealed.as_slice()).during("write a value")?;
    }
    write.commit().during("commit to the backend")?;
    Ok(true)
}
