//! Dates as text, in UTC: for chat templates that name the day, and for results.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// A moment, in seconds since 1970, under a `strftime` format.
///
/// # Errors
/// When the format names something unknown, or ends within a directive.
pub fn format(format: &str, seconds: u64) -> Result<String, String> {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let weekday = DAYS[((days + 4) % 7) as usize];
    let name = MONTHS[month as usize - 1];
    let of_year = days - days_before_year(year) + 1;
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let mut result = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            result.push(c);
            continue;
        }
        let mut directive = characters.next();
        let padded = directive != Some('-');
        if !padded {
            directive = characters.next();
        }
        let two = |value: u64| if padded { format!("{value:02}") } else { value.to_string() };
        result += &match directive {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two(hour12),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('j') => {
                if padded {
                    format!("{of_year:03}")
                } else {
                    of_year.to_string()
                }
            }
            Some('B') => name.to_string(),
            Some('b' | 'h') => name[..3].to_string(),
            Some('A') => weekday.to_string(),
            Some('a') => weekday[..3].to_string(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_string(),
            Some('z') => "+0000".to_string(),
            Some('%') => "%".to_string(),
            Some(other) => return Err(format!("strftime_now does not know `%{other}`")),
            None => return Err(format!("the date format `{format}` ends within a directive")),
        };
    }
    Ok(result)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Days from 1970 to the first of a year.
fn days_before_year(year: u64) -> u64 {
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

/// Year, month and day of a number of days since 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let mut rest = days - days_before_year(year);
    let february = if is_leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while rest >= lengths[month] {
        rest -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "01 Jan 1970 00:00:00 Thursday 001"),
            (951_827_696, "29 Feb 2000 12:34:56 Tuesday 060"),
            (1_735_689_599, "31 Dec 2024 23:59:59 Tuesday 366"),
            (4_107_542_400, "01 Mar 2100 00:00:00 Monday 060"),
        ] {
            assert_eq!(format("%d %b %Y %H:%M:%S %A %j", seconds).unwrap(), expected);
        }
        assert_eq!(format("%-d/%-m/%y %I%p 100%%", 951_827_696).unwrap(), "29/2/00 12PM 100%");
        assert_eq!(format("%Q", 0).unwrap_err(), "strftime_now does not know `%Q`");
        assert!(format("%", 0).is_err());
    }
}
