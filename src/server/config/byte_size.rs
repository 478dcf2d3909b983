//! Sizes as people write and read them: `500M`, `8GiB`, `1e9`, `1.5G`.
//!
//! [`parse`] is exact: decimal arithmetic on 128-bit integers, no floating point, and what is left
//! of a byte is cut off. K, M, G and T (with or without a B) are powers of 1000; Ki, Mi, Gi and Ti
//! (with or without a B) are powers of 1024; upper and lower case mean the same. [`Bytes`] prints a
//! size as a number that can be typed again, with the readable form behind it.
//!
//! It does not know which sizes anybody accepts; a range is the caller's business.

use std::fmt;

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidSize {
    #[error("it is empty")]
    Empty,
    #[error("it is negative")]
    Negative,
    #[error("it does not start with a number")]
    NotANumber,
    #[error("there is no unit {0:?}")]
    UnknownUnit(String),
    #[error("it is too large")]
    TooLarge,
}

/// The number of bytes that a text names.
pub(super) fn parse(text: &str) -> Result<u64, InvalidSize> {
    let text = text.trim();
    if text.is_empty() {
        return Err(InvalidSize::Empty);
    }
    if text.starts_with('-') {
        return Err(InvalidSize::Negative);
    }
    let (whole, rest) = split_digits(text);
    let (fraction, rest) = rest.strip_prefix('.').map_or(("", rest), split_digits);
    if whole.is_empty() && fraction.is_empty() {
        return Err(InvalidSize::NotANumber);
    }
    let (exponent, rest) = split_exponent(rest);
    let unit = unit_bytes(rest).ok_or_else(|| InvalidSize::UnknownUnit(rest.trim().to_owned()))?;
    let exponent = exponent.saturating_sub_unsigned(fraction.len() as u64);
    let bytes = product(&format!("{whole}{fraction}"), exponent, unit);
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).ok_or(InvalidSize::TooLarge)
}

/// A number of bytes, printed like `10000000000 (10.00 GB)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 5] = [
            (1_000_000_000_000_000, "PB"),
            (1_000_000_000_000, "TB"),
            (1_000_000_000, "GB"),
            (1_000_000, "MB"),
            (1_000, "KB"),
        ];
        let Self(bytes) = *self;
        match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
            None => write!(f, "{bytes} bytes"),
            Some((unit, name)) => {
                let (whole, hundredths) = (bytes / unit, bytes % unit / (unit / 100));
                write!(f, "{bytes} bytes ({whole}.{hundredths:02} {name})")
            }
        }
    }
}

/// `digits`, times ten to the power of `exponent`, times `unit`, without the fraction. `None` if it
/// does not fit.
fn product(digits: &str, exponent: i64, unit: u64) -> Option<u128> {
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    // Zeros at the end move to the exponent, so that `1.000…0` with any number of them is 1.
    let shortest = digits.trim_end_matches('0');
    let exponent = exponent.saturating_add_unsigned((digits.len() - shortest.len()) as u64);
    let product = shortest.parse::<u128>().ok()?.checked_mul(u128::from(unit))?;
    let power = 10u128.checked_pow(u32::try_from(exponent.unsigned_abs()).ok()?);
    if exponent < 0 {
        Some(power.map_or(0, |power| product / power))
    } else {
        product.checked_mul(power?)
    }
}

/// Cuts a power of ten like `e-3` off the start of `text`; 0 if there is none.
fn split_exponent(text: &str) -> (i64, &str) {
    let after_e = text.strip_prefix(['e', 'E']).unwrap_or_default();
    let (power, rest) = split_digits(after_e.strip_prefix(['+', '-']).unwrap_or(after_e));
    if power.is_empty() {
        return (0, text);
    }
    let power = power.parse().unwrap_or(i64::from(i32::MAX));
    (if after_e.starts_with('-') { -power } else { power }, rest)
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.trim_start().to_ascii_lowercase();
    Some(match unit.strip_suffix('b').unwrap_or(&unit) {
        "" => 1,
        "k" => 1000,
        "m" => 1000 * 1000,
        "g" => 1000 * 1000 * 1000,
        "t" => 1000 * 1000 * 1000 * 1000,
        "ki" => 1 << 10,
        "mi" => 1 << 20,
        "gi" => 1 << 30,
        "ti" => 1 << 40,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_mean_what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("10000", 10_000),
            ("10000000000", 10_000_000_000),
            ("18446744073709551615", u64::MAX),
            ("500M", 500_000_000),
            ("500m", 500_000_000),
            ("500MB", 500_000_000),
            ("8GiB", 8 << 30),
            ("8gib", 8 << 30),
            ("8Gi", 8 << 30),
            ("8 GiB", 8 << 30),
            (" 7k ", 7000),
            ("7Kb", 7000),
            ("7KiB", 7168),
            ("3Mi", 3 << 20),
            ("2T", 2_000_000_000_000),
            ("2TB", 2_000_000_000_000),
            ("2Ti", 2 << 40),
            ("2TIB", 2 << 40),
            ("12B", 12),
            ("1e9", 1_000_000_000),
            ("1E9", 1_000_000_000),
            ("1e+9", 1_000_000_000),
            ("1.5e9", 1_500_000_000),
            ("25e-1K", 2500),
            ("1e3K", 1_000_000),
            ("1.5G", 1_500_000_000),
            (".5G", 500_000_000),
            ("5.G", 5_000_000_000),
            ("0.3GiB", 322_122_547),
            ("1.9", 1),
            ("1e-400", 0),
            ("0e99999999999999999999", 0),
            ("0001.0000000000000000000000000000000000000000000000G", 1_000_000_000),
            ("100000000000000000000000000000000000000e-30", 100_000_000),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn junk_is_told_apart() {
        for (text, error) in [
            ("", InvalidSize::Empty),
            ("  ", InvalidSize::Empty),
            ("-1", InvalidSize::Negative),
            ("-5G", InvalidSize::Negative),
            ("abc", InvalidSize::NotANumber),
            ("G", InvalidSize::NotANumber),
            (".", InvalidSize::NotANumber),
            ("+5", InvalidSize::NotANumber),
            ("5X", InvalidSize::UnknownUnit("X".to_owned())),
            ("5GBB", InvalidSize::UnknownUnit("GBB".to_owned())),
            ("1_000", InvalidSize::UnknownUnit("_000".to_owned())),
            ("1.2.3", InvalidSize::UnknownUnit(".3".to_owned())),
            ("1e", InvalidSize::UnknownUnit("e".to_owned())),
            ("0x10", InvalidSize::UnknownUnit("x10".to_owned())),
            ("5 M 6", InvalidSize::UnknownUnit("M 6".to_owned())),
            ("5\u{b5}", InvalidSize::UnknownUnit("\u{b5}".to_owned())),
            ("18446744073709551616", InvalidSize::TooLarge),
            ("99999999T", InvalidSize::TooLarge),
            ("1e40", InvalidSize::TooLarge),
            ("1e99999999999999999999", InvalidSize::TooLarge),
            ("99999999999999999999999999999999999999999", InvalidSize::TooLarge),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn printed_sizes_can_be_typed_again() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1000 bytes (1.00 KB)"),
            (10_092_552, "10092552 bytes (10.09 MB)"),
            (1 << 30, "1073741824 bytes (1.07 GB)"),
            (10_000_000_000, "10000000000 bytes (10.00 GB)"),
            (1_999_999_999_999, "1999999999999 bytes (1.99 TB)"),
            (1 << 50, "1125899906842624 bytes (1.12 PB)"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
            let typed = text.split_once(' ').expect("a number and its unit").0;
            assert_eq!(parse(typed), Ok(bytes));
        }
    }
}
