//! Fuzzes quantized matrices: whatever a configuration and the tensors beside it say, a matrix comes of them or an
//! error.
#![no_main]

use bantam_core::layouts::Shape;
use bantam_model::checkpoint::Dtype;
use bantam_model::formats::decode;
use bantam_model::plan::Stored;
use libfuzzer_sys::fuzz_target;

/// Elements of a tensor, and sides of a matrix.
const MOST: usize = 1 << 14;

// The first line is `quantization_config`, the second outputs and inputs, then a line for every tensor: what follows
// "m" in its name, type, dimensions. After an empty line come the bytes of all, in this order; zeros where they end.
fuzz_target!(|input: &[u8]| {
    let Some(at) = input.windows(2).position(|pair| pair == b"\n\n") else {
        return;
    };
    let (Ok(text), mut data) = (std::str::from_utf8(&input[..at]), &input[at + 2..]) else {
        return;
    };
    let mut lines = text.lines();
    let (Some(config), Some(shape)) = (lines.next(), lines.next()) else {
        return;
    };
    let sizes = |text: &str| text.split(' ').filter_map(|size| size.parse().ok()).collect::<Vec<usize>>();
    let [rows, columns] = sizes(shape)[..] else {
        return;
    };
    if rows == 0 || columns == 0 || rows > MOST || columns > MOST || rows * columns > MOST {
        return;
    }
    let mut tensors = Vec::new();
    for line in lines.take(8) {
        let mut words = line.splitn(3, ' ');
        let (Some(name), Some(dtype)) = (words.next(), words.next().and_then(Dtype::from_name)) else {
            return;
        };
        let shape = sizes(words.next().unwrap_or(""));
        let elements = shape.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
        let Some(bytes) = elements.filter(|&all| all <= MOST).map(|all| all * dtype.bytes()) else {
            return;
        };
        let (own, rest) = data.split_at(bytes.min(data.len()));
        data = rest;
        let mut own = own.to_vec();
        own.resize(bytes, 0);
        tensors.push((format!("m{name}"), Stored { dtype, shape }, own));
    }
    let tensors: Vec<_> =
        tensors.iter().map(|(name, stored, data)| (name.as_str(), stored.clone(), data.as_slice())).collect();
    if let Ok(Some(values)) = decode(config.as_bytes(), &tensors, "m", Shape { rows, columns }) {
        assert_eq!(values.len(), rows * columns);
    }
});
