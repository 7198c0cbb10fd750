//! Products of fragments, and matrices between shared memory and registers.

use half::{bf16, f16};
use prime_runtime::Device;

use super::{Given, run, same, whole};

type Checked = Result<(), String>;

/// How the operands of a product are stored.
#[derive(Clone, Copy, PartialEq)]
enum Operand {
    Bf16,
    F16,
    Tf32,
}

impl Operand {
    const ALL: [(Operand, &'static str); 3] =
        [(Operand::Bf16, "bf16"), (Operand::F16, "f16"), (Operand::Tf32, "tf32")];

    /// Elements of a 32-bit word.
    fn packed(self) -> usize {
        if self == Operand::Tf32 { 1 } else { 2 }
    }

    fn bits(self, value: f32) -> u32 {
        match self {
            Operand::Bf16 => bf16::from_f32(value).to_bits().into(),
            Operand::F16 => f16::from_f32(value).to_bits().into(),
            Operand::Tf32 => value.to_bits(),
        }
    }

    /// A word of the values at consecutive places of k.
    fn word(self, value: impl Fn(usize) -> f32, k: usize) -> u32 {
        if self.packed() == 1 {
            self.bits(value(k))
        } else {
            self.bits(value(k)) | self.bits(value(k + 1)) << 16
        }
    }
}

fn a_at(m: usize, k: usize) -> f32 {
    whole(m * 64 + k, 1)
}

fn b_at(k: usize, n: usize) -> f32 {
    whole(k * 256 + n, 2)
}

fn c_at(m: usize, n: usize) -> f32 {
    whole(m * 256 + n, 3)
}

/// The sum over `depth` places of k from `first` on, to c or to nothing.
fn product(m: usize, n: usize, first: usize, depth: usize, accumulate: bool) -> f32 {
    let start = if accumulate { c_at(m, n) } else { 0.0 };
    start + (first..first + depth).map(|k| a_at(m, k) * b_at(k, n)).sum::<f32>()
}

pub(super) fn mma(device: Device) -> Checked {
    for (operand, name) in Operand::ALL {
        let packed = operand.packed();
        let mut given = Given { threads: 32, out: vec![0; 128], ..Given::default() };
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            // PTX ISA, fragments of m16n8k16 and m16n8k8: rows g and g + 8 at the first, then at the second half of k.
            for (row, half) in [(g, 0), (g + 8, 0), (g, 1), (g + 8, 1)] {
                given.a.push(operand.word(|k| a_at(row, k), packed * (t + 4 * half)));
            }
            for half in 0..2 {
                given.b.push(operand.word(|k| b_at(k, g), packed * (t + 4 * half)));
            }
            for (row, column) in [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)] {
                given.c.push(c_at(row, column).to_bits());
            }
        }
        let mut expected = Vec::new();
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for (row, column) in [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)] {
                expected.push(product(row, column, 0, 8 * packed, true).to_bits());
            }
        }
        let kernel = format!("instruction_mma<{name}>");
        same(&kernel, &run(device, false, &kernel, &given)?, &expected)?;
    }
    Ok(())
}

/// A two-byte element of one of four matrices of 8 x 8.
fn element(matrix: usize, row: usize, column: usize) -> u32 {
    (1000 * matrix + 10 * row + column) as u32
}

/// The word of a lane in the fragment of a matrix.
fn fragment(matrix: usize, lane: usize, transposed: bool) -> u32 {
    let (g, t) = (lane / 4, lane % 4);
    let at = |i: usize| {
        if transposed { element(matrix, 2 * t + i, g) } else { element(matrix, g, 2 * t + i) }
    };
    at(0) | at(1) << 16
}

/// Where the rows of the matrices lie, 16 bytes each, in no plain order.
fn row_place(row: usize, rows: usize) -> usize {
    (row * 5 + 3) % rows
}

pub(super) fn load_matrix(device: Device) -> Checked {
    for (count, transposed) in [(1, false), (2, false), (2, true), (4, false), (4, true)] {
        let mut given =
            Given { threads: 32, shared_bytes: 512, a: vec![0; 128], ..Given::default() };
        given.out = vec![0; 32 * count];
        for row in 0..32 {
            let place = row_place(row, 32);
            given.b.push(16 * place as u32);
            for pair in 0..4 {
                let at = |i: usize| element(row / 8, row % 8, 2 * pair + i);
                given.a[4 * place + pair] = at(0) | at(1) << 16;
            }
        }
        let expected: Vec<u32> = (0..32)
            .flat_map(|lane| (0..count).map(move |matrix| fragment(matrix, lane, transposed)))
            .collect();
        let kernel = format!("instruction_load_matrix<{count}, {transposed}>");
        same(&kernel, &run(device, false, &kernel, &given)?, &expected)?;
    }
    Ok(())
}

pub(super) fn store_matrix(device: Device) -> Checked {
    for (count, transposed) in [(2, false), (2, true), (4, false), (4, true)] {
        let rows = 8 * count;
        let mut given = Given { threads: 32, shared_bytes: 512, ..Given::default() };
        given.out = vec![0; 4 * rows];
        let mut expected = vec![0; 4 * rows];
        for lane in 0..32 {
            given.b.push(16 * row_place(lane % rows, rows) as u32);
            given.a.extend((0..count).map(|matrix| fragment(matrix, lane, transposed)));
        }
        for row in 0..rows {
            for pair in 0..4 {
                let at = |i: usize| element(row / 8, row % 8, 2 * pair + i);
                expected[4 * row_place(row, rows) + pair] = at(0) | at(1) << 16;
            }
        }
        let kernel = format!("instruction_store_matrix<{count}, {transposed}>");
        same(&kernel, &run(device, true, &kernel, &given)?, &expected)?;
    }
    Ok(())
}

/// An operand of wgmma in shared memory: `rows` of M or N and `depth` of K, laid out as a descriptor of a swizzle says.
#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    depth: usize,
    /// Bytes of the swizzle's span; 0 for none.
    span: usize,
    /// Whether M or N is contiguous instead of K.
    transposed: bool,
    bytes_of_element: usize,
    /// Where it begins.
    start: usize,
}

impl Tile {
    /// Elements in a row of a pattern.
    fn row_elements(self) -> usize {
        if self.span == 0 { 16 } else { self.span }.div_euclid(self.bytes_of_element)
    }

    /// The distances (leading, stride) of the descriptor, of patterns that lie dense: along the contiguous axis first.
    fn distances(self) -> (usize, usize) {
        let pattern = 8 * if self.span == 0 { 16 } else { self.span };
        let contiguous = if self.transposed { self.rows } else { self.depth };
        let along = contiguous.div_ceil(self.row_elements()) * pattern;
        match (self.span, self.transposed) {
            // Pieces of 8 x 16 bytes: leading along K, stride along M or N.
            (0, false) => (pattern, along),
            (0, true) => (along, pattern),
            // A row of the pattern holds all of K, so only patterns of 8 rows have a distance.
            (_, false) => (0, pattern),
            // Patterns of 8 along K follow each other; pieces along M or N lie behind all of K.
            (_, true) => (self.depth / 8 * pattern, pattern),
        }
    }

    /// The byte at which an element begins.
    fn place(self, row: usize, k: usize) -> usize {
        let (leading, stride) = self.distances();
        let (contiguous, other) = if self.transposed { (row, k) } else { (k, row) };
        let elements = self.row_elements();
        let within = contiguous % elements * self.bytes_of_element;
        let row_bytes = elements * self.bytes_of_element;
        let (piece, group) = (contiguous / elements, other / 8);
        let offset = match (self.span, self.transposed) {
            (0, false) => group * stride + piece * leading,
            (0, true) => group * leading + piece * stride,
            (_, false) => group * stride,
            (_, true) => piece * leading + group * stride,
        };
        let linear = self.start + offset + other % 8 * row_bytes + within;
        // The rows of a pattern exchange their 16-byte pieces by their numbers: each in 8 pieces with 128 bytes, every second row in 4 with 64,
        // every fourth in 2 with 32.
        let exchanged = match self.span {
            128 => linear >> 7 & 7,
            64 => linear >> 7 & 3,
            32 => linear >> 7 & 1,
            _ => 0,
        };
        linear ^ exchanged << 4
    }

    fn bytes(self) -> usize {
        let last = (0..self.rows).flat_map(|row| (0..self.depth).map(move |k| (row, k)));
        let end = last.map(|(row, k)| self.place(row, k)).max().unwrap_or(0) + 16;
        end.next_multiple_of(1024)
    }

    /// The descriptor of the part that begins at a place of k.
    fn descriptor(self, k: usize) -> u64 {
        let (leading, stride) = self.distances();
        let bytes = if self.transposed || self.span == 0 {
            self.place(0, k) - self.start
        } else {
            // Within the pattern's row; the exchange goes by the whole address.
            k * self.bytes_of_element
        };
        let layout = match self.span {
            128 => 1,
            64 => 2,
            32 => 3,
            _ => 0u64,
        };
        ((self.start + bytes) >> 4) as u64
            | ((leading >> 4) as u64) << 16
            | ((stride >> 4) as u64) << 32
            | layout << 62
    }

    /// Writes the values at their places into the words of shared memory.
    fn fill(self, image: &mut Vec<u32>, operand: Operand, value: impl Fn(usize, usize) -> f32) {
        image.resize(image.len().max((self.start + self.bytes()) / 4), 0);
        for row in 0..self.rows {
            for k in 0..self.depth {
                let (place, bits) = (self.place(row, k), operand.bits(value(row, k)));
                image[place / 4] |= bits << (8 * (place % 4));
            }
        }
    }
}

/// One product of 64 x N; `a` is the span and the transposition of A, or nothing when A is in registers.
struct Product {
    operand: Operand,
    name: &'static str,
    n: usize,
    a: Option<(usize, bool)>,
    b: (usize, bool),
    accumulate: bool,
    /// Where along K the product begins.
    k: usize,
}

const PRODUCTS: &[Product] = &[
    // The same instance with each swizzle, with K begun within a pattern's row.
    product_of(Operand::Bf16, "bf16", 64, Some((128, false)), (128, false), true, 16),
    product_of(Operand::Bf16, "bf16", 64, Some((64, false)), (64, false), false, 16),
    product_of(Operand::Bf16, "bf16", 64, Some((32, false)), (32, false), true, 0),
    product_of(Operand::Bf16, "bf16", 64, Some((0, false)), (0, false), true, 16),
    product_of(Operand::Bf16, "bf16", 64, Some((0, false)), (128, false), false, 0),
    product_of(Operand::Bf16, "bf16", 128, Some((128, false)), (128, true), true, 32),
    product_of(Operand::Bf16, "bf16", 64, Some((128, true)), (64, true), true, 16),
    product_of(Operand::Bf16, "bf16", 64, Some((32, true)), (0, true), true, 16),
    product_of(Operand::Bf16, "bf16", 256, Some((64, true)), (128, false), false, 32),
    product_of(Operand::F16, "f16", 32, Some((128, false)), (64, false), true, 16),
    product_of(Operand::F16, "f16", 8, Some((128, true)), (0, true), true, 0),
    product_of(Operand::Tf32, "tf32", 32, Some((128, false)), (128, false), true, 8),
    product_of(Operand::Bf16, "bf16", 64, None, (128, true), true, 16),
    product_of(Operand::Tf32, "tf32", 16, None, (32, false), false, 0),
];

const fn product_of(
    operand: Operand,
    name: &'static str,
    n: usize,
    a: Option<(usize, bool)>,
    b: (usize, bool),
    accumulate: bool,
    k: usize,
) -> Product {
    Product { operand, name, n, a, b, accumulate, k }
}

pub(super) fn wgmma(device: Device) -> Checked {
    for product_case in PRODUCTS {
        let &Product { operand, name, n, a, b, accumulate, k } = product_case;
        let bytes_of_element = 4 / operand.packed();
        let step = 8 * operand.packed();
        // Rows of a pattern hold so much of K; what is transposed holds four steps.
        let depth = |(span, transposed): (usize, bool)| match (span, transposed) {
            (0, _) | (_, true) => 64,
            (span, false) => span / bytes_of_element,
        };
        let tile = |rows: usize, (span, transposed): (usize, bool), start: usize| Tile {
            rows,
            depth: depth((span, transposed)),
            span,
            transposed,
            bytes_of_element,
            start,
        };
        let mut given = Given { threads: 128, accumulate, ..Given::default() };
        let a_tile = tile(64, a.unwrap_or((0, false)), 0);
        let b_start = if a.is_some() { a_tile.bytes() } else { 0 };
        let b_tile = tile(n, b, b_start);
        if a.is_some() {
            a_tile.fill(&mut given.a, operand, a_at);
            given.a_descriptor = a_tile.descriptor(k);
        }
        b_tile.fill(&mut given.a, operand, |row, k| b_at(k, row));
        given.b_descriptor = b_tile.descriptor(k);
        given.words = given.a.len() as u32;
        given.shared_bytes = 4 * given.a.len();
        given.out = vec![0; 64 * n];
        let mut expected = Vec::new();
        for thread in 0..128 {
            let (warp, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
            for half in 0..2 {
                for row in [g, g + 8] {
                    let place = k + operand.packed() * (t + 4 * half);
                    given.b.push(operand.word(|k| a_at(16 * warp + row, k), place));
                }
            }
            for register in 0..n / 2 {
                let row = 16 * warp + g + register % 4 / 2 * 8;
                let column = register / 4 * 8 + 2 * t + register % 2;
                given.c.push(c_at(row, column).to_bits());
                expected.push(product(row, column, k, step, accumulate).to_bits());
            }
        }
        let kernel = match a {
            Some((_, transposed)) => {
                format!("instruction_wgmma<{name}, {n}, {transposed}, {}>", b.1)
            }
            None => format!("instruction_wgmma_registers<{name}, {n}, {}>", b.1),
        };
        let case = format!("{kernel} with A {a:?}, B {b:?}, K from {k}");
        let got = run(device, true, &kernel, &given).map_err(|error| format!("{case}: {error}"))?;
        same(&case, &got, &expected)?;
    }
    Ok(())
}
