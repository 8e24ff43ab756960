//! Quantities as people write them on a command line: `10M`, `100K/s`, `16c32g`, `2:30,10:70`. `args` parses with it.

use std::str::FromStr;

/// A count, a rate or a size, with K, M, G or T for thousands: `10M`, `2.5k`, `100K/s`.
pub(crate) fn quantity(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is no quantity: write it like 250000, 2.5M or 100K/s");
    let plain = text.strip_suffix("/s").unwrap_or(text);
    let (number, factor) = match plain.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&plain[..at], 1e3),
        Some((at, 'm' | 'M')) => (&plain[..at], 1e6),
        Some((at, 'g' | 'G')) => (&plain[..at], 1e9),
        Some((at, 't' | 'T')) => (&plain[..at], 1e12),
        _ => (plain, 1.0),
    };
    // `f64` would also read `inf`, `nan` and exponents.
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(wrong());
    }
    let value = number.parse::<f64>().map_err(|_| wrong())? * factor;
    if value > 0.0 && value <= 1e15 { Ok(value) } else { Err(format!("{text:?} has to be above 0 and at most 1000T")) }
}

/// A machine: cores and gibibytes of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MachineSize {
    pub(crate) cores: f64,
    pub(crate) memory_bytes: f64,
}

impl FromStr for MachineSize {
    type Err = String;

    fn from_str(text: &str) -> Result<MachineSize, String> {
        let wrong = || format!("{text:?} is no box: write cores and GiB like 16c32g");
        let lower = text.to_ascii_lowercase();
        let (cores, memory) = lower.strip_suffix('g').and_then(|rest| rest.split_once('c')).ok_or_else(wrong)?;
        let (cores, memory): (u32, u32) = (cores.parse().map_err(|_| wrong())?, memory.parse().map_err(|_| wrong())?);
        if cores == 0 || memory == 0 {
            return Err(wrong());
        }
        Ok(MachineSize { cores: cores.into(), memory_bytes: f64::from(memory) * f64::from(1 << 30) })
    }
}

/// Rooms of one size, and which part of all messages goes to them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RoomClass {
    pub(crate) members: f64,
    pub(crate) share: f64,
}

/// `SIZE:PERCENT,...`, all percents together 100.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RoomSizes(pub(crate) Vec<RoomClass>);

impl FromStr for RoomSizes {
    type Err = String;

    fn from_str(text: &str) -> Result<RoomSizes, String> {
        let class = |part: &str| {
            let wrong =
                || format!("{part:?} is no room size with its part of the messages: write SIZE:PERCENT like 10:40");
            let (members, percent) = part.split_once(':').ok_or_else(wrong)?;
            let members = quantity(members).map_err(|_| wrong())?;
            let percent = quantity(percent.strip_suffix('%').unwrap_or(percent)).map_err(|_| wrong())?;
            if members < 2.0 || members.fract() != 0.0 {
                return Err(format!("{part:?}: a room has 2 members or more, a whole number of them"));
            }
            Ok(RoomClass { members, share: percent / 100.0 })
        };
        let classes = text.split(',').map(class).collect::<Result<Vec<_>, _>>()?;
        let sum: f64 = classes.iter().map(|class| class.share * 100.0).sum();
        if (sum - 100.0).abs() > 0.1 {
            return Err(format!("the percents add up to {sum:.1} and not to 100"));
        }
        Ok(RoomSizes(classes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_people_write_them() {
        for (text, value) in [("10M", 1e7), ("2.5k", 2_500.0), ("100K/s", 1e5), ("7", 7.0), ("1G", 1e9), ("2T", 2e12)] {
            assert_eq!(quantity(text), Ok(value), "{text}");
        }
        for text in ["", "K", "-1", "1e9", "inf", "nan", "0", "10MB", "1.2.3", "9999999T", "/s", "é", "10é"] {
            assert!(quantity(text).is_err(), "{text}");
        }
    }

    #[test]
    fn boxes_have_cores_and_memory() {
        let machine = MachineSize { cores: 16.0, memory_bytes: 32.0 * 1_073_741_824.0 };
        assert_eq!(("16c32g".parse(), "16C32G".parse()), (Ok(machine), Ok(machine)));
        for text in ["", "16", "16c", "c32g", "0c32g", "16c0g", "-1c2g", "16c32", "32g16c", "4294967296c1g"] {
            assert!(text.parse::<MachineSize>().is_err_and(|error| error.contains("16c32g")), "{text}");
        }
    }

    #[test]
    fn room_sizes_add_up_to_all_messages() {
        let sizes: RoomSizes = "2:40,10:59.5%,1K:0.5".parse().expect("right");
        assert_eq!(sizes.0[2], RoomClass { members: 1_000.0, share: 0.005 });
        for (text, why) in [
            ("2:40,10:40", "add up to 80.0"),
            ("", "SIZE:PERCENT"),
            ("10", "SIZE:PERCENT"),
            ("10:x", "SIZE:PERCENT"),
            ("1:100", "2 members or more"),
            ("2.5:100", "a whole number"),
            ("2:100,", "SIZE:PERCENT"),
            ("2:-5,3:105", "SIZE:PERCENT"),
        ] {
            let error = text.parse::<RoomSizes>().expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
