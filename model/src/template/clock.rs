//! The time that `strftime_now` prints.

use super::Fault;
use super::budget::Budget;
use super::value::Value;
use jiff::civil::DateTime;

/// What the clock of a template says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now(Option<DateTime>);

impl Now {
    /// The local time of this machine, asked anew by each rendering.
    pub const LOCAL: Now = Now(None);

    /// A time that stands still, as ISO 8601 writes it: `2025-01-31T12:34:56`, or a date alone.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(|time| Now(Some(time)))
    }

    /// The same time for all that one rendering prints.
    pub fn frozen(self) -> Self {
        Now(Some(self.0.unwrap_or_else(|| jiff::Zoned::now().datetime())))
    }

    /// The time that it stands at, as [`Now::parse`] reads it; none for a clock that goes.
    pub fn text(self) -> Option<String> {
        self.0.map(|time| time.to_string())
    }

    /// Python's `datetime.strftime` in the C locale; what it does not know stays as it is.
    pub(super) fn format(self, format: &str, budget: &Budget) -> Result<Value, Fault> {
        let Now(Some(time)) = self.frozen() else { return Ok(Value::undefined("now")) };
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            // The longest directive prints 24 characters, and takes some time.
            budget.take(at + 128)?;
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let flag = rest.chars().next().filter(|c| "-_0^#".contains(*c));
            let after = if flag.is_some() { &rest[1..] } else { rest };
            let directive = after.chars().next();
            match directive.and_then(|directive| field(time, directive)) {
                Some(field) => {
                    out.push_str(&field.flagged(flag));
                    rest = &after[1..];
                }
                None => out.push('%'),
            }
        }
        budget.take(rest.len())?;
        out.push_str(rest);
        Ok(Value::paid(out))
    }
}

enum Field {
    /// A number, how wide, and what fills it.
    Number(i64, usize, char),
    Text(String),
}

impl Field {
    fn flagged(self, flag: Option<char>) -> String {
        match (self, flag) {
            (Field::Number(number, ..), Some('-')) => number.to_string(),
            (Field::Number(number, width, _), Some('_')) => format!("{number:>width$}"),
            (Field::Number(number, width, fill), flag) => match fill == ' ' && flag != Some('0') {
                true => format!("{number:>width$}"),
                false => format!("{number:0>width$}"),
            },
            (Field::Text(text), Some('^')) => text.to_uppercase(),
            (Field::Text(text), _) => text,
        }
    }
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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

fn field(time: DateTime, directive: char) -> Option<Field> {
    let zeros = |number: i64, width: usize| Some(Field::Number(number, width, '0'));
    let spaces = |number: i64| Some(Field::Number(number, 2, ' '));
    let text = |text: String| Some(Field::Text(text));
    let weekday = i64::from(time.weekday().to_sunday_zero_offset());
    let day_name = DAYS[time.weekday().to_sunday_zero_offset().rem_euclid(7) as usize];
    let month_name = MONTHS[(time.month() as usize).saturating_sub(1) % 12];
    let hour = i64::from(time.hour());
    let half = (hour + 11) % 12 + 1;
    let noon = if hour < 12 { "AM" } else { "PM" };
    let (year, day_of_year) = (i64::from(time.year()), i64::from(time.day_of_year()));
    let clock = format!("{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second());
    let (month, day) = (i64::from(time.month()), i64::from(time.day()));
    match directive {
        'Y' => zeros(year, 1),
        'C' => zeros(year / 100, 2),
        'y' => zeros(year % 100, 2),
        'm' => zeros(month, 2),
        'd' => zeros(day, 2),
        'e' => spaces(day),
        'H' => zeros(hour, 2),
        'k' => spaces(hour),
        'I' => zeros(half, 2),
        'l' => spaces(half),
        'M' => zeros(time.minute().into(), 2),
        'S' => zeros(time.second().into(), 2),
        'f' => zeros(i64::from(time.subsec_nanosecond()) / 1000, 6),
        'j' => zeros(day_of_year, 3),
        'U' => zeros((day_of_year + 6 - weekday) / 7, 2),
        'W' => zeros((day_of_year + 6 - (weekday + 6) % 7) / 7, 2),
        'w' => zeros(weekday, 1),
        'u' => zeros((weekday + 6) % 7 + 1, 1),
        'G' => zeros(time.date().iso_week_date().year().into(), 1),
        'g' => zeros(i64::from(time.date().iso_week_date().year()) % 100, 2),
        'V' => zeros(time.date().iso_week_date().week().into(), 2),
        'A' => text(day_name.to_owned()),
        'a' => text(day_name[..3].to_owned()),
        'B' => text(month_name.to_owned()),
        'b' | 'h' => text(month_name[..3].to_owned()),
        'p' => text(noon.to_owned()),
        'P' => text(noon.to_lowercase()),
        'D' | 'x' => text(format!("{month:02}/{day:02}/{:02}", year % 100)),
        'F' => text(format!("{year}-{month:02}-{day:02}")),
        'T' | 'X' => text(clock),
        'R' => text(clock[..5].to_owned()),
        'r' => text(format!("{half:02}{} {noon}", &clock[2..])),
        'c' => text(format!("{} {} {day:>2} {clock} {year}", &day_name[..3], &month_name[..3])),
        'n' => text("\n".to_owned()),
        't' => text("\t".to_owned()),
        '%' => text("%".to_owned()),
        // A time without a zone has none to print.
        'Z' | 'z' => text(String::new()),
        _ => None,
    }
}
