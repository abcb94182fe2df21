//! Python's two old ways of filling in a text: `'%s' % value` and `'{}'.format(value)`.

use super::budget::Budget;
use super::machine::Args;
use super::value::{Kind, Value};
use super::{Fault, fault, text};

/// How a number or text is laid out: `[[fill]align][sign][#][0][width][,][.precision][kind]`.
#[derive(Debug)]
struct Layout {
    fill: char,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    commas: bool,
    width: usize,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Layout {
    const PLAIN: Layout = Layout {
        fill: ' ',
        align: None,
        sign: None,
        alternate: false,
        commas: false,
        width: 0,
        precision: None,
        kind: None,
    };
}

/// Wider than any line, and small enough to be made.
const WIDTH_MAX: usize = 10_000;

/// A number at the beginning of `rest`, taken off.
fn take_number(rest: &mut &str) -> Result<Option<usize>, Fault> {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    *rest = after;
    match digits.parse::<usize>() {
        Ok(number) if number <= WIDTH_MAX => Ok(Some(number)),
        _ if digits.is_empty() => Ok(None),
        _ => Err(Fault::Limit(format!("a width or precision is above {WIDTH_MAX}"))),
    }
}

/// `format % values`.
pub(super) fn percent(format: &str, values: &Value, budget: &Budget) -> Result<Value, Fault> {
    let mut given = match values {
        Value::List(list) if list.kind == Kind::Tuple => list.items.clone(),
        value => vec![value.clone()],
    }
    .into_iter();
    let missing = || fault("not enough values for a % format");
    let (mut out, mut rest, mut used_names) = (String::new(), format, false);
    while let Some(at) = rest.find('%') {
        budget.take(at + 16)?;
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let mut named = None;
        if let Some(after) = rest.strip_prefix('(') {
            let (name, after) = after.split_once(')').ok_or_else(|| fault("a % format lacks a bracket"))?;
            let Value::Dict(dict) = values else { return Err(fault("a % format with names needs a dict")) };
            let value =
                dict.get_str(name, budget)?.ok_or_else(|| fault(format!("no value named `{name}`")))?;
            named = Some(value.clone());
            used_names = true;
            rest = after;
        }
        let mut layout = Layout { align: Some('>'), ..Layout::PLAIN };
        while let Some(flag) = rest.chars().next().filter(|c| "-+ 0#".contains(*c)) {
            match flag {
                '-' => layout.align = Some('<'),
                '0' => layout.fill = '0',
                '#' => layout.alternate = true,
                sign => layout.sign = Some(sign),
            }
            rest = &rest[1..];
        }
        layout.width = take_number(&mut rest)?.unwrap_or(0);
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            layout.precision = Some(take_number(&mut rest)?.unwrap_or(0));
        }
        let kind = rest.chars().next().ok_or_else(|| fault("a % format ends with its sign"))?;
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = named.or_else(|| given.next()).ok_or_else(missing)?;
        if layout.align == Some('<') {
            layout.fill = ' ';
        }
        let piece = percent_piece(kind, layout, &value, budget)?;
        out.push_str(&piece);
    }
    if !used_names && given.next().is_some() && !matches!(values, Value::Dict(_)) {
        return Err(fault("not all values were used by a % format"));
    }
    budget.take(rest.len())?;
    out.push_str(rest);
    Ok(Value::paid(out))
}

fn percent_piece(kind: char, mut layout: Layout, value: &Value, budget: &Budget) -> Result<String, Fault> {
    match kind {
        's' | 'r' | 'a' => {
            layout.fill = ' ';
            let text = shown(value, if kind == 's' { None } else { Some(kind) }, budget)?;
            lay_out_text(&layout, &text, budget)
        }
        'd' | 'i' | 'u' => {
            let whole = value.as_int().or_else(|| value.as_float().map(|value| value as i128));
            let whole =
                whole.ok_or_else(|| fault(format!("%{kind} needs a number, found {}", value.type_name())))?;
            layout.kind = Some('d');
            lay_out_number(&layout, &Value::Int(whole), budget)
        }
        'f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'x' | 'X' | 'o' => {
            layout.kind = Some(kind);
            lay_out_number(&layout, value, budget)
        }
        'c' => match (value, value.as_int()) {
            (Value::Str(text), _) => lay_out_text(&layout, text, budget),
            (_, Some(code)) => {
                let c = u32::try_from(code).ok().and_then(char::from_u32);
                Ok(c.ok_or_else(|| fault("%c needs a character"))?.to_string())
            }
            _ => Err(fault("%c needs a character")),
        },
        other => Err(fault(format!("there is no format %{other}"))),
    }
}

/// `str`, `repr` (`r`) or `ascii` (`a`) of a value.
fn shown(value: &Value, conversion: Option<char>, budget: &Budget) -> Result<String, Fault> {
    let mut text = String::new();
    match (conversion, value) {
        (Some(_), Value::Str(value)) => {
            budget.take(10 * value.len())?;
            text::write_repr(&mut text, value);
        }
        _ => value.write(&mut text, budget)?,
    }
    Ok(text)
}

/// `'{} {name}'.format(…)`.
pub(super) fn braces(format: &str, args: Args, budget: &Budget) -> Result<Value, Fault> {
    let (mut out, mut rest, mut next, mut numbered) = (String::new(), format, 0, false);
    while let Some(at) = rest.find(['{', '}']) {
        budget.take(at + 16)?;
        out.push_str(&rest[..at]);
        let mark = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(mark) {
            out.push_str(mark);
            rest = after;
            continue;
        }
        let (field, after) = match mark {
            "{" => rest.split_once('}').ok_or_else(|| fault("format(): a `{` is not closed"))?,
            _ => return Err(fault("format(): a `}` closes nothing")),
        };
        rest = after;
        let (place, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = place.split_once('!').unwrap_or((place, ""));
        let value = match name.parse::<usize>() {
            _ if name.is_empty() => {
                next += 1;
                args.positional.get(next - 1)
            }
            Ok(index) => {
                numbered = true;
                args.positional.get(index)
            }
            Err(_) => args.named.iter().find(|(found, _)| **found == *name).map(|(_, value)| value),
        };
        if numbered && next > 0 {
            return Err(fault("format(): fields with and without a number do not mix"));
        }
        let value = value.ok_or_else(|| fault(format!("format(): there is no value for `{{{name}}}`")))?;
        let piece = match (conversion.chars().next(), spec) {
            (None, "") => shown(value, None, budget)?,
            (conversion, spec) => {
                let layout = layout(spec)?;
                match (conversion, value) {
                    (None, Value::Int(_) | Value::Float(_)) => lay_out_number(&layout, value, budget)?,
                    (conversion, value) => {
                        let conversion = conversion.filter(|conversion| *conversion != 's');
                        lay_out_text(&layout, &shown(value, conversion, budget)?, budget)?
                    }
                }
            }
        };
        out.push_str(&piece);
    }
    budget.take(rest.len())?;
    out.push_str(rest);
    Ok(Value::paid(out))
}

fn layout(spec: &str) -> Result<Layout, Fault> {
    let mut layout = Layout::PLAIN;
    let mut rest = spec;
    let mut chars = rest.chars();
    match (chars.next(), chars.next()) {
        (Some(fill), Some(align @ ('<' | '>' | '^' | '='))) => {
            (layout.fill, layout.align) = (fill, Some(align));
            rest = chars.as_str();
        }
        (Some(align @ ('<' | '>' | '^' | '=')), _) => {
            layout.align = Some(align);
            rest = &rest[1..];
        }
        _ => {}
    }
    if let Some(sign) = rest.chars().next().filter(|c| "+- ".contains(*c)) {
        layout.sign = Some(sign);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('#') {
        (layout.alternate, rest) = (true, after);
    }
    if rest.starts_with('0') && layout.align.is_none() {
        (layout.fill, layout.align) = ('0', Some('='));
    }
    layout.width = take_number(&mut rest)?.unwrap_or(0);
    if let Some(after) = rest.strip_prefix(',') {
        (layout.commas, rest) = (true, after);
    }
    if let Some(after) = rest.strip_prefix('.') {
        rest = after;
        layout.precision = take_number(&mut rest)?;
    }
    let mut kinds = rest.chars();
    layout.kind = kinds.next();
    match kinds.next() {
        None => Ok(layout),
        Some(_) => Err(fault(format!("format() cannot read `{}`", crate::foreign::clipped(spec)))),
    }
}

fn lay_out_text(layout: &Layout, text: &str, budget: &Budget) -> Result<String, Fault> {
    if layout.kind.is_some_and(|kind| kind != 's') {
        return Err(fault("a format for numbers was given a text"));
    }
    let text = match layout.precision {
        Some(precision) => &text[..text::byte_of(text, precision)],
        None => text,
    };
    padded(layout, "", text, layout.align.unwrap_or('<'), budget)
}

fn lay_out_number(layout: &Layout, value: &Value, budget: &Budget) -> Result<String, Fault> {
    budget.take(WIDTH_MAX / 8)?;
    let number = value
        .as_float()
        .ok_or_else(|| fault(format!("a format for numbers was given {}", value.type_name())))?;
    let precision = layout.precision.unwrap_or(6);
    let whole = value.as_int();
    let digits = match (layout.kind, whole) {
        (None | Some('d'), Some(whole)) => whole.unsigned_abs().to_string(),
        (Some('x'), Some(whole)) => format!("{:x}", whole.unsigned_abs()),
        (Some('X'), Some(whole)) => format!("{:X}", whole.unsigned_abs()),
        (Some('o'), Some(whole)) => format!("{:o}", whole.unsigned_abs()),
        (Some('b'), Some(whole)) => format!("{:b}", whole.unsigned_abs()),
        (None, None) if layout.precision.is_none() => text::float(number.abs()),
        (Some('f' | 'F'), _) => format!("{:.precision$}", number.abs()),
        (Some('%'), _) => format!("{:.precision$}%", number.abs() * 100.0),
        (Some('e'), _) => exponential(number.abs(), precision),
        (Some('E'), _) => exponential(number.abs(), precision).to_uppercase(),
        (Some('g' | 'G') | None, _) => general(number.abs(), precision.max(1)),
        (Some(kind), _) => return Err(fault(format!("there is no format `{kind}` for this number"))),
    };
    let prefix = match (layout.alternate, layout.kind) {
        (true, Some('x')) => "0x",
        (true, Some('X')) => "0X",
        (true, Some('o')) => "0o",
        _ => "",
    };
    let sign = match (number.is_sign_negative() && !number.is_nan(), layout.sign) {
        (true, _) => "-".to_owned(),
        (false, Some(sign @ ('+' | ' '))) => sign.to_string(),
        _ => String::new(),
    };
    let digits = if layout.commas { with_commas(&digits) } else { digits };
    padded(layout, &(sign + prefix), &digits, layout.align.unwrap_or('>'), budget)
}

fn exponential(number: f64, precision: usize) -> String {
    let plain = format!("{number:.precision$e}");
    let Some((digits, exponent)) = plain.split_once('e') else { return plain };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

fn general(number: f64, precision: usize) -> String {
    let shortest = format!("{number:.*e}", precision - 1);
    let exponent: i64 = shortest.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    let text = match exponent < -4 || exponent >= precision as i64 {
        true => exponential(number, precision - 1),
        false => format!("{number:.*}", (precision as i64 - 1 - exponent).max(0) as usize),
    };
    let (digits, rest) =
        text.split_once('e').map_or((&*text, String::new()), |(digits, rest)| (digits, format!("e{rest}")));
    match digits.contains('.') {
        true => format!("{}{rest}", digits.trim_end_matches('0').trim_end_matches('.')),
        false => text,
    }
}

fn with_commas(digits: &str) -> String {
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let mut made = String::new();
    for (index, c) in digits[..end].chars().enumerate() {
        if index > 0 && (end - index) % 3 == 0 {
            made.push(',');
        }
        made.push(c);
    }
    made + &digits[end..]
}

fn padded(layout: &Layout, sign: &str, body: &str, align: char, budget: &Budget) -> Result<String, Fault> {
    let missing = layout.width.saturating_sub(text::length(sign) + text::length(body));
    budget.take(body.len() + missing * layout.fill.len_utf8())?;
    let fill = |count: usize| layout.fill.to_string().repeat(count);
    Ok(match align {
        '<' => [sign, body, &fill(missing)].concat(),
        '^' => [&*fill(missing / 2), sign, body, &fill(missing - missing / 2)].concat(),
        // Zeros stand between the sign and the digits.
        _ if layout.fill == '0' || align == '=' => [sign, &*fill(missing), body].concat(),
        _ => [&*fill(missing), sign, body].concat(),
    })
}

/// Digits of a float as `json.dumps` writes them.
pub(super) fn json_float(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        value if value.is_infinite() => if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        value => text::float(value),
    }
}
