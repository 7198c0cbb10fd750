//! Memory of the emulated device: it is reached by copies only, and remembers which bytes were written.

use prime_runtime::safetensors::{File, Source, write};
use prime_runtime::{DType, Device, Element, Plan, Tensor, View, bf16, emulated};

fn counting(device: Device, dims: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..dims.iter().product::<usize>()).map(|i| i as f32).collect();
    Tensor::from_slice(&values, dims).unwrap().to(device).unwrap()
}

fn notes(view: View<'_>, bytes: usize) -> Vec<u8> {
    let shadow = emulated::shadow(view.address()).unwrap();
    let offset = (view.address() - shadow.base) as usize;
    // SAFETY: inside the shadow of an allocation that `view` keeps alive.
    unsafe { std::slice::from_raw_parts(shadow.start.add(offset), bytes) }.to_vec()
}

#[test]
fn values_survive_the_way_to_the_device_and_back_in_every_dtype() {
    fn both_ways<E: Element>(values: &[E]) {
        let host = Tensor::from_slice(values, &[values.len()]).unwrap();
        let device = host.to(Device::Emulated).unwrap();
        assert_eq!(
            (device.device(), device.dtype(), device.dims()),
            (Device::Emulated, E::DTYPE, host.dims())
        );
        assert_eq!(device.view().to_vec::<E>().unwrap(), values);
        assert_eq!(device.to(Device::Cpu).unwrap().as_slice::<E>(), values);
        let expected: Vec<f32> = values.iter().map(|x| x.to_f32()).collect();
        assert_eq!(device.view().to_f32_vec(), expected);
    }
    both_ways(&[1.5f32, -0.0, f32::MAX]);
    both_ways(&[bf16::ONE, bf16::NEG_INFINITY, bf16::ZERO]);
    both_ways(&[prime_runtime::f16::EPSILON; 5]);
    both_ways(&[u32::MAX, 0, 7]);
    both_ways::<f32>(&[]);
}

#[test]
fn spread_rows_are_copied_between_devices_and_nothing_beside_them() {
    for (to, from) in [
        (Device::Emulated, Device::Emulated),
        (Device::Emulated, Device::Cpu),
        (Device::Cpu, Device::Emulated),
        (Device::Cpu, Device::Cpu),
    ] {
        let wide = counting(from, &[3, 5]);
        let mut out = counting(to, &[3, 4]);
        out.view_mut().into_columns(1..3).copy_from(wide.view().columns(2..4)).unwrap();
        let expected = [0.0, 2.0, 3.0, 3.0, 4.0, 7.0, 8.0, 7.0, 8.0, 12.0, 13.0, 11.0];
        assert_eq!(out.view().to_f32_vec(), expected, "{from} to {to}");
        // Spread rows into dense ones, and back.
        let mut dense = Tensor::zeros(to, DType::F32, &[3, 2]).unwrap();
        dense.view_mut().copy_from(wide.view().columns(3..5)).unwrap();
        assert_eq!(dense.view().to_f32_vec(), [3.0, 4.0, 8.0, 9.0, 13.0, 14.0], "{from} to {to}");
        let mut back = counting(from, &[3, 5]);
        back.view_mut().into_columns(0..2).copy_from(dense.view()).unwrap();
        assert_eq!(
            back.view().columns(0..3).to_f32_vec(),
            [3.0, 4.0, 2.0, 8.0, 9.0, 7.0, 13.0, 14.0, 12.0]
        );
    }
}

#[test]
fn writing_and_clearing_touch_the_rows_of_a_view_only() {
    let mut tensor = counting(Device::Emulated, &[2, 3]);
    tensor.view_mut().into_columns(1..3).write(&[-1.0f32, -2.0, -3.0, -4.0]).unwrap();
    assert_eq!(tensor.view().to_f32_vec(), [0.0, -1.0, -2.0, 3.0, -3.0, -4.0]);
    tensor.view_mut().into_columns(0..2).fill_zero().unwrap();
    assert_eq!(tensor.view().to_f32_vec(), [0.0, 0.0, -2.0, 0.0, 0.0, -4.0]);
    tensor.view_mut().into_rows(1..1).fill_zero().unwrap();
    assert_eq!(tensor.view().to_f32_vec(), [0.0, 0.0, -2.0, 0.0, 0.0, -4.0]);
}

#[test]
fn copies_that_do_not_fit_are_refused_with_a_sentence() {
    let mut tensor = Tensor::zeros(Device::Emulated, DType::F32, &[2, 3]).unwrap();
    let other = Tensor::zeros(Device::Emulated, DType::F32, &[3, 2]).unwrap();
    let error = tensor.view_mut().copy_from(other.view()).unwrap_err().to_string();
    assert_eq!(error, "copy: `from` is [3, 2], expected [2, 3]");
    let other = Tensor::zeros(Device::Cpu, DType::BF16, &[2, 3]).unwrap();
    let error = tensor.view_mut().copy_from(other.view()).unwrap_err().to_string();
    assert_eq!(error, "copy: `from` is bfloat16, expected float32");
    let error = tensor.view_mut().write(&[1u32; 6]).unwrap_err().to_string();
    assert_eq!(error, "copy: `values` is float32, expected uint32");
    let error = tensor.view_mut().write(&[1f32; 5]).unwrap_err().to_string();
    assert_eq!(error, "copy: `values` has 5 elements, expected the 6 of [2, 3]");
    let error = tensor.view().to_vec::<bf16>().unwrap_err().to_string();
    assert_eq!(error, "copy: `from` is float32, expected bfloat16");
}

#[test]
fn every_way_to_a_host_reference_is_closed_off_the_host() {
    type Attempt = fn(&mut Tensor);
    let attempts: [(&str, Attempt); 9] = [
        ("as_slice", |t| assert!(t.as_slice::<f32>().is_empty())),
        ("as_mut_slice", |t| t.as_mut_slice::<f32>().fill(1.0)),
        ("row", |t| assert!(t.view().row::<f32>(0).is_empty())),
        ("row_mut", |t| t.view_mut().row_mut::<f32>(0).fill(1.0)),
        ("into_slice", |t| t.view_mut().into_slice::<f32>().fill(1.0)),
        ("as_ptr", |t| assert!(t.view().as_ptr::<f32>().is_null())),
        ("as_mut_ptr", |t| assert!(t.view_mut().as_mut_ptr::<f32>().is_null())),
        // SAFETY: one reference at a time.
        ("shared row", |t| unsafe { t.view_mut().shared().row_mut::<f32>(0).fill(1.0) }),
        // SAFETY: one reference at a time.
        ("shared part", |t| unsafe { t.view_mut().shared().part_mut::<f32>(0, 0..1).fill(1.0) }),
    ];
    for (name, attempt) in attempts {
        let mut tensor = Tensor::zeros(Device::Emulated, DType::F32, &[2, 2]).unwrap();
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attempt(&mut tensor)))
            .expect_err(name);
        let message = panic.downcast_ref::<String>().expect(name);
        assert_eq!(
            message, "a tensor on emulated was used as host memory; copy it to the cpu first",
            "{name}"
        );
        assert_eq!(tensor.view().to_f32_vec(), [0.0; 4], "{name}");
    }
}

#[test]
fn zeroed_memory_counts_as_written_and_forgotten_memory_does_not() {
    let mut plan = Plan::new();
    let (first, second) =
        (plan.add("a", DType::BF16, &[("n", 6)]), plan.add("b", DType::F32, &[("n", 4)]));
    let mut memory = plan.allocate(Device::Emulated).unwrap();
    let (mut a, b) = (memory.take(first), memory.take(second));
    let shadow = emulated::shadow(b.view().address()).unwrap();
    assert_eq!(Some(shadow), emulated::shadow(a.view().address()));
    assert_eq!((shadow.base, shadow.bytes), (a.view().address(), 128));
    assert_eq!(b.view().address() - a.view().address(), 64);

    emulated::forget(a.view_mut().into_rows(2..5));
    assert_eq!(notes(a.view(), 12), [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]);
    assert_eq!(notes(b.view(), 16), [1; 16]);
    let error = a.view().to_vec::<bf16>().unwrap_err().to_string();
    assert_eq!(
        error,
        "a copy from the emulated device reads 6 bytes that were never written, the first of them byte 4 of row 0"
    );
    assert_eq!(a.head(2).to_f32_vec(), [0.0, 0.0]);
    a.view_mut().into_rows(2..4).write(&[bf16::ONE; 2]).unwrap();
    assert_eq!(notes(a.view(), 12), [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1]);
    a.view_mut().into_rows(4..5).fill_zero().unwrap();
    assert_eq!(a.view().to_f32_vec(), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
}

#[test]
fn a_copy_between_emulated_tensors_takes_along_what_was_never_written() {
    let mut from = counting(Device::Emulated, &[2, 3]);
    emulated::forget(from.view_mut().into_columns(1..2));
    let mut to = counting(Device::Emulated, &[2, 2]);
    to.view_mut().copy_from(from.view().columns(1..3)).unwrap();
    assert_eq!(notes(to.view(), 16), [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]);
    let error = to.view().to_vec::<f32>().unwrap_err().to_string();
    assert!(error.contains("reads 8 bytes that were never written"), "{error}");
    assert_eq!(to.view().columns(1..2).to_f32_vec(), [2.0, 5.0]);
}

#[test]
fn only_addresses_of_living_emulated_tensors_have_a_shadow() {
    let mut host = counting(Device::Cpu, &[4]);
    assert_eq!(emulated::shadow(host.view().address()), None);
    emulated::forget(host.view_mut());
    assert_eq!(host.view().to_f32_vec(), [0.0, 1.0, 2.0, 3.0]);

    let tensor = counting(Device::Emulated, &[16]);
    let base = tensor.view().address();
    assert_eq!(emulated::shadow(base + 63).unwrap().base, base);
    assert_ne!(emulated::shadow(base + 64).map(|shadow| shadow.base), Some(base));
    // The table ends with the allocation, which a view of a part keeps no longer than its tensor.
    drop(tensor);
    let again = Tensor::zeros(Device::Emulated, DType::F32, &[16]).unwrap();
    assert_eq!(emulated::shadow(again.view().address()).unwrap().bytes, 64);
}

#[test]
fn tensors_of_a_device_are_written_to_files_and_read_from_them_piece_by_piece() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    // More than one piece, and the last of them not whole.
    let rows = 700_001;
    let tensor = counting(Device::Emulated, &[rows, 3]);
    let spread = tensor.view().columns(1..3);
    let scalar = counting(Device::Emulated, &[]);
    let sources = [
        Source::view("whole", tensor.view()),
        Source::view("spread", spread),
        Source::view_as("narrow", tensor.view(), DType::BF16),
        Source::view("scalar", scalar.view()),
    ];
    write(&path, sources, &[]).unwrap();
    let file = File::open(&path).unwrap();
    let expected = tensor.to(Device::Cpu).unwrap();
    assert_eq!(file.view("whole").unwrap().as_slice::<f32>(), expected.as_slice::<f32>());
    assert_eq!(file.view("spread").unwrap().to_f32_vec(), spread.to_f32_vec());
    assert_eq!(file.view("scalar").unwrap().to_f32_vec(), [0.0]);
    for (name, dtype) in [("whole", DType::F32), ("whole", DType::BF16), ("narrow", DType::F32)] {
        let mut host = Tensor::zeros(Device::Cpu, dtype, &[rows, 3]).unwrap();
        let mut device = Tensor::zeros(Device::Emulated, dtype, &[rows, 3]).unwrap();
        file.read_into(name, &mut host.view_mut()).unwrap();
        file.read_into(name, &mut device.view_mut()).unwrap();
        assert_eq!(device.view().to_f32_vec(), host.view().to_f32_vec(), "{name} as {dtype}");
    }
    let mut wide = counting(Device::Emulated, &[rows, 4]);
    file.read_into("spread", &mut wide.view_mut().into_columns(1..3)).unwrap();
    assert_eq!(wide.view().columns(1..3).to_f32_vec(), spread.to_f32_vec());
    assert_eq!(wide.view().rows(1..2).columns(3..4).to_f32_vec(), [7.0]);
}
