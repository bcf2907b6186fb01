//! Numbers as Go prints them on a metrics page: the shortest text that reads back the same, with an exponent from a
//! million on and below a ten-thousandth. Tests and scrapers compare whole lines, so `2147483648` won't do.

use std::fmt::{self, Write as _};

/// Displays as `0`, `1.5`, `524288`, `1.048576e+06`, `1e-05`, `+Inf`, `NaN`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GoFloat(pub f64);

impl fmt::Display for GoFloat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0;
        if value.is_nan() {
            return f.write_str("NaN");
        }
        if value.is_infinite() {
            return f.write_str(if value > 0.0 { "+Inf" } else { "-Inf" });
        }
        if value == 0.0 {
            return f.write_str("0"); // minus zero too
        }
        if (1e-4..1e6).contains(&value.abs()) {
            return write!(f, "{value}");
        }
        // Rust's own shortest form, with Go's two-digit exponent and sign
        let mut text = Small::default();
        write!(text, "{value:e}")?;
        let text = text.as_str();
        let Some((digits, exponent)) = text.split_once('e') else {
            return f.write_str(text);
        };
        match exponent.strip_prefix('-') {
            Some(exponent) => write!(f, "{digits}e-{exponent:0>2}"),
            None => write!(f, "{digits}e+{exponent:0>2}"),
        }
    }
}

/// Room for any f64 in exponent form, on the stack.
#[derive(Default)]
struct Small {
    bytes: [u8; 32],
    len: usize,
}

impl Small {
    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl fmt::Write for Small {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes
            .get_mut(self.len..end)
            .ok_or(fmt::Error)?
            .copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_in_go() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-1.0, "-1"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (0.000012345, "1.2345e-05"),
            (1.5, "1.5"),
            (524_288.0, "524288"),
            (999_999.0, "999999"),
            (1_000_000.0, "1e+06"),
            (1_048_576.0, "1.048576e+06"),
            (2_147_483_648.0, "2.147483648e+09"),
            (-2_147_483_648.0, "-2.147483648e+09"),
            (9_223_372_036_854_775_807.0, "9.223372036854776e+18"),
            (1e100, "1e+100"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(GoFloat(value).to_string(), text);
        }
    }
}
