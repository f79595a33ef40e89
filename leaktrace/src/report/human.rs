//! Numbers as people read them.

/// Bytes with a binary unit and three or four significant digits: `1.50 MiB`. A minus is kept.
pub fn bytes(value: f64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if value.abs() < 1024.0 {
        return format!("{value:.0} B");
    }
    let mut scaled = value / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if scaled.abs() < 1023.95 {
            break;
        }
        scaled /= 1024.0;
        unit = larger;
    }
    let digits = if scaled.abs() < 10.0 { 2 } else { 1 };
    format!("{scaled:.digits$} {unit}")
}

/// A change in bytes, with its sign: `+1.50 MiB`.
pub fn change(value: f64) -> String {
    let plus = if value >= 0.0 { "+" } else { "" };
    format!("{plus}{}", bytes(value))
}

/// A length of time: `4.2 s`, `3 min 20 s`, `2 h 5 min`.
pub fn seconds(value: f64) -> String {
    if value < 59.95 {
        let digits = usize::from(value < 9.95 && value.fract().abs() >= 0.05);
        return format!("{value:.digits$} s");
    }
    let whole = value.round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    match (hours, minutes, seconds) {
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, 0, _) => format!("{hours} h"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// A share as `12 %`, `1.5 %`, `0.03 %`.
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = match percent.abs() {
        share if share >= 9.95 || share == 0.0 => 0,
        share if share >= 0.095 => 1,
        _ => 2,
    };
    format!("{percent:.digits$} %")
}

/// `1 sample`, `2 samples`.
pub fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", thousands(number))
}

/// A whole number with its thousands set apart: `12,345`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let sizes = [
            0.0,
            1023.0,
            1024.0,
            1536.0,
            10.0 * 1048576.0,
            -2_147_483_648.0,
            1048575.9,
        ];
        let read = sizes.map(bytes);
        assert_eq!(
            read,
            [
                "0 B",
                "1023 B",
                "1.00 KiB",
                "1.50 KiB",
                "10.0 MiB",
                "-2.00 GiB",
                "1.00 MiB"
            ]
        );
        let times = [0.0, 4.24, 30.0, 59.96, 200.0, 3600.0, 7500.0].map(seconds);
        assert_eq!(
            times,
            [
                "0 s",
                "4.2 s",
                "30 s",
                "1 min",
                "3 min 20 s",
                "1 h",
                "2 h 5 min"
            ]
        );
        assert_eq!(
            [0.0, 0.0003, 0.015, 0.123, 1.0].map(percent),
            ["0 %", "0.03 %", "1.5 %", "12 %", "100 %"]
        );
        assert_eq!(
            (count(1, "sample"), count(1234567, "sample")),
            ("1 sample".into(), "1,234,567 samples".into())
        );
    }
}
