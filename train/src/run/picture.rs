//! `training_loss.png`: the losses of a run, pale as they were and dark when smoothed, with the numbers at the ends of
//! both axes. A few lines of PNG without compression need no library.

const WIDTH: usize = 800;
const HEIGHT: usize = 480;
/// Around the curve; the numbers stand in it.
const MARGIN: usize = 64;
const WHITE: u8 = 255;
const PALE: u8 = 185;
const BLACK: u8 = 0;
/// Digits, point, minus and e: five rows of three dots, the first in the highest bits.
const SIGNS: &[(char, u16)] = &[
    ('0', 0b111_101_101_101_111),
    ('1', 0b010_110_010_010_111),
    ('2', 0b111_001_111_100_111),
    ('3', 0b111_001_111_001_111),
    ('4', 0b101_101_111_001_001),
    ('5', 0b111_100_111_001_111),
    ('6', 0b111_100_111_101_111),
    ('7', 0b111_001_010_010_010),
    ('8', 0b111_101_111_101_111),
    ('9', 0b111_101_111_001_111),
    ('.', 0b000_000_000_000_010),
    ('-', 0b000_000_111_000_000),
    ('e', 0b000_111_111_100_111),
];
const DOT: usize = 3;

struct Canvas(Vec<u8>);

impl Canvas {
    fn dot(&mut self, x: usize, y: usize, shade: u8) {
        if x < WIDTH && y < HEIGHT {
            self.0[y * WIDTH + x] = shade;
        }
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), shade: u8) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let count = dx.abs().max(dy.abs()).ceil().max(1.0);
        for at in 0..=count as usize {
            let share = at as f64 / count;
            let (x, y) = ((from.0 + share * dx).round() as usize, (from.1 + share * dy).round() as usize);
            self.dot(x, y, shade);
            self.dot(x, y + 1, shade);
        }
    }

    fn words(&mut self, x: usize, y: usize, words: &str) {
        for (place, letter) in words.chars().enumerate() {
            let sign = SIGNS.iter().find(|(known, _)| *known == letter).map_or(0, |(_, sign)| *sign);
            for bit in (0..15).filter(|bit| sign >> (14 - bit) & 1 == 1) {
                for dot in 0..DOT * DOT {
                    let (column, row) = (place * 4 + bit % 3, bit / 3);
                    self.dot(x + column * DOT + dot % DOT, y + row * DOT + dot / DOT, BLACK);
                }
            }
        }
    }
}

/// A picture of losses, each with its step.
pub(super) fn png(losses: &[(u64, f64)]) -> Vec<u8> {
    let mut canvas = Canvas(vec![WHITE; WIDTH * HEIGHT]);
    let least = losses.iter().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
    let most = losses.iter().map(|(_, loss)| *loss).fold(f64::NEG_INFINITY, f64::max);
    let last = losses.last().map_or(1, |(step, _)| *step).max(1);
    let (left, right, top, bottom) = (MARGIN, WIDTH - MARGIN / 2, MARGIN / 2, HEIGHT - MARGIN);
    let corner = |x: usize, y: usize| (x as f64, y as f64);
    canvas.line(corner(left, top), corner(left, bottom), BLACK);
    canvas.line(corner(left, bottom), corner(right, bottom), BLACK);
    if losses.is_empty() {
        return encoded(&canvas.0);
    }
    let span = (most - least).max(1e-9);
    let place = |(step, loss): (u64, f64)| {
        let x = left as f64 + (right - left) as f64 * step as f64 / last as f64;
        (x, bottom as f64 - (bottom - top) as f64 * (loss - least) / span)
    };
    for (curve, shade) in [(losses.to_vec(), PALE), (smoothed(losses), BLACK)] {
        curve.windows(2).for_each(|pair| canvas.line(place(pair[0]), place(pair[1]), shade));
    }
    canvas.words(2, top, &format!("{most:.3}"));
    canvas.words(2, bottom - 5 * DOT, &format!("{least:.3}"));
    let words = last.to_string();
    canvas.words(right.saturating_sub(words.len() * 4 * DOT), bottom + 4 * DOT, &words);
    encoded(&canvas.0)
}

/// A running mean whose memory grows with the run, as LLaMA-Factory draws it.
fn smoothed(losses: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let weight = 1.8 * (1.0 / (1.0 + (-0.05 * losses.len() as f64).exp()) - 0.5);
    let mut mean = losses.first().map_or(0.0, |(_, loss)| *loss);
    let smooth = |&(step, loss): &(u64, f64)| {
        mean = mean * weight + (1.0 - weight) * loss;
        (step, mean)
    };
    losses.iter().map(smooth).collect()
}

/// Shades of grey as PNG.
fn encoded(shades: &[u8]) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let size = [WIDTH as u32, HEIGHT as u32].map(u32::to_be_bytes).concat();
    chunk(&mut png, b"IHDR", &[&size[..], &[8, 0, 0, 0, 0]].concat());
    // Every row begins with the number of its filter: none.
    let rows: Vec<u8> = shades.chunks(WIDTH).flat_map(|row| [&[0][..], row].concat()).collect();
    let mut stream = vec![0x78, 0x01];
    let blocks = rows.chunks(0xffff);
    let count = blocks.len();
    for (number, block) in blocks.enumerate() {
        let length = block.len() as u16;
        stream.push(u8::from(number + 1 == count));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    let (a, b) = rows.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (a + b) % 65_521)
    });
    stream.extend((b << 16 | a).to_be_bytes());
    chunk(&mut png, b"IDAT", &stream);
    chunk(&mut png, b"IEND", &[]);
    png
}

fn chunk(png: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    png.extend((data.len() as u32).to_be_bytes());
    let named = [&kind[..], data].concat();
    png.extend(&named);
    png.extend(checksum(&named).to_be_bytes());
}

/// CRC-32.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_png() {
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
        let png = png(&[(1, 4.0), (2, 3.0), (4, 1.0)]);
        assert!(png.starts_with(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x03\x20\0\0\x01\xe0\x08\0\0\0\0"));
        assert!(png.ends_with(b"IEND\xae\x42\x60\x82"));
        assert_eq!(super::png(&[]).len(), png.len());
    }
}
