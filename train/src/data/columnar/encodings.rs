//! How parquet writes numbers and words: runs, plain, differences, streams of bytes.

use super::bytes::Bytes;
use super::{Budget, Fallible, broken};

/// Numbers of `width` bits in runs: either one number so often, or eight at a time bit by bit.
pub(super) fn runs(bytes: &mut Bytes<'_>, width: u32, count: usize) -> Fallible<Vec<u32>> {
    if width > 32 {
        return Err(broken(format!("numbers of {width} bits")));
    }
    let mut numbers = Vec::with_capacity(count);
    while numbers.len() < count {
        let left = count - numbers.len();
        let head = bytes.size()?;
        if head & 1 == 0 {
            let value = bytes.take(width.div_ceil(8) as usize)?;
            let value = value.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte));
            if head == 0 {
                return Err(broken("a run of nothing"));
            }
            numbers.extend(std::iter::repeat_n(value, left.min(head >> 1)));
        } else {
            let groups = head >> 1;
            // The last of them may be cut off where nothing of it is meant.
            let length = groups.saturating_mul(width as usize).min(bytes.rest.len());
            if groups == 0 {
                return Err(broken("a run of nothing"));
            }
            let packed = bytes.take(length)?;
            let wanted = left.min(groups.saturating_mul(8));
            if (wanted as u64 * u64::from(width)).div_ceil(8) > length as u64 {
                return Err(broken("the end of a part within a value"));
            }
            numbers.extend((0..wanted).map(|at| bits(packed, at, width) as u32));
        }
    }
    Ok(numbers)
}

/// The number at a place among numbers of up to 64 bits, the lowest bit first.
fn bits(packed: &[u8], at: usize, width: u32) -> u64 {
    let (mut bit, mut value, mut done) = (at as u64 * u64::from(width), 0_u64, 0);
    while done < width {
        let within = (bit % 8) as u32;
        let taken = (8 - within).min(width - done);
        let byte = packed.get((bit / 8) as usize).copied().unwrap_or(0);
        value |= u64::from((u32::from(byte) >> within) & ((1 << taken) - 1)) << done;
        done += taken;
        bit += u64::from(taken);
    }
    value
}

/// `count` truths, one bit each.
pub(super) fn truths(bytes: &[u8], count: usize) -> Fallible<impl Iterator<Item = bool>> {
    match count.div_ceil(8) <= bytes.len() {
        true => Ok((0..count).map(|at| bytes[at / 8] >> (at % 8) & 1 == 1)),
        false => Err(broken("fewer truths than values")),
    }
}

/// Differences: a first number, then blocks of what each adds to the one before, as many bits as a part of the block
/// needs. The numbers are those of 64 bits; who wants 32 cuts.
pub(super) fn differences(bytes: &mut Bytes<'_>, count: usize, budget: &mut Budget) -> Fallible<Vec<i64>> {
    let (block, parts, told) = (bytes.size()?, bytes.size()?, bytes.size()?);
    let mut value = bytes.zigzag()?;
    let size = block.checked_div(parts).unwrap_or(0);
    if told != count || size == 0 || block % parts != 0 || size % 8 != 0 || block > 1 << 20 {
        return Err(broken(format!("{told} differences in blocks of {block}, for {count} values")));
    }
    budget.take(8 * count as u64)?;
    let mut numbers = Vec::with_capacity(count);
    if count > 0 {
        numbers.push(value);
    }
    while numbers.len() < count {
        let least = bytes.zigzag()?;
        let widths = bytes.take(parts)?;
        for &width in widths {
            let wanted = size.min(count - numbers.len());
            if wanted == 0 {
                break;
            }
            if width > 64 {
                return Err(broken(format!("differences of {width} bits")));
            }
            let packed = bytes.take(size / 8 * usize::from(width))?;
            for at in 0..wanted {
                let more = bits(packed, at, u32::from(width)) as i64;
                value = value.wrapping_add(least).wrapping_add(more);
                numbers.push(value);
            }
        }
    }
    Ok(numbers)
}

/// Words whose lengths stand before them all.
pub(super) fn words_by_length<'a>(
    bytes: &mut Bytes<'a>,
    count: usize,
    budget: &mut Budget,
) -> Fallible<Vec<&'a [u8]>> {
    let lengths = differences(bytes, count, budget)?;
    budget.take(16 * count as u64)?;
    let one =
        |length: &i64| bytes.take(usize::try_from(*length).map_err(|_| broken("a word of negative length"))?);
    lengths.iter().map(one).collect()
}

/// Words that share their beginning with the one before.
pub(super) fn words_by_difference(
    bytes: &mut Bytes<'_>,
    count: usize,
    budget: &mut Budget,
) -> Fallible<Vec<Vec<u8>>> {
    let shared = differences(bytes, count, budget)?;
    let ends = words_by_length(bytes, count, budget)?;
    let mut words: Vec<Vec<u8>> = Vec::with_capacity(count);
    for (shared, end) in shared.iter().zip(ends) {
        let before = words.last().map_or(&[][..], Vec::as_slice);
        let shared = usize::try_from(*shared).ok().and_then(|shared| before.get(..shared));
        let shared = shared.ok_or_else(|| broken("a word that shares more than there is"))?;
        budget.take((size_of::<Vec<u8>>() + shared.len() + end.len()) as u64)?;
        words.push([shared, end].concat());
    }
    Ok(words)
}

/// Numbers whose first bytes stand together, then their second, and so on: put back side by side.
pub(super) fn streams(bytes: &[u8], width: usize, count: usize) -> Fallible<Vec<u8>> {
    if count.checked_mul(width) != Some(bytes.len()) {
        return Err(broken("streams of another length than their values"));
    }
    Ok((0..bytes.len()).map(|at| bytes[at % width * count + at / width]).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn runs_of_both_kinds_are_read() {
        // The example of parquet's own description: 0 to 7 in three bits, then five times 4.
        let mut bytes = Bytes { rest: &[3, 0b1000_1000, 0b1100_0110, 0b1111_1010, 10, 4] };
        assert_eq!(runs(&mut bytes, 3, 13).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7, 4, 4, 4, 4, 4]);
        for bad in [&[0, 1][..], &[1], &[3, 1], &[]] {
            assert!(runs(&mut Bytes { rest: bad }, 3, 9).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn differences_are_added_up() {
        // 7, 5, 3, 1, 2, 3, 4, 5 of the same description: the least is -2, the rest takes two bits.
        let head = [128, 1, 4, 8, 14, 3, 2, 0, 0, 0, 0b1100_0000, 0b0011_1111, 0, 0, 0, 0, 0, 0];
        let mut bytes = Bytes { rest: &head };
        let mut budget = Budget { left: 1000 };
        assert_eq!(differences(&mut bytes, 8, &mut budget).unwrap(), [7, 5, 3, 1, 2, 3, 4, 5]);
        assert!(differences(&mut Bytes { rest: &head }, 9, &mut budget).is_err());
        assert!(differences(&mut Bytes { rest: &head[..9] }, 8, &mut budget).is_err());
    }
}
