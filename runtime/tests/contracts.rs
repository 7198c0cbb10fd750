//! The sentences and tables that people see: shape errors, plans, device names.

use prime_runtime::{DType, Device, Error, NamedDims, Plan};

#[test]
fn a_tensor_of_the_wrong_rank_is_told_the_dimensions_it_should_have() {
    let mut dims = NamedDims::new("rope.forward");
    let error = dims.bind("q", &[7, 64], ["tokens", "heads", "head_dim"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "rope.forward: `q` is [7, 64], expected [tokens, heads, head_dim]"
    );
    assert!(matches!(error, Error::Shape { operation: "rope.forward", .. }));
}

#[test]
fn a_dimension_that_disagrees_names_the_tensor_that_bound_it_first() {
    let mut dims = NamedDims::new("matmul.forward");
    dims.bind("a", &[2, 3], ["rows", "inner"]).unwrap();
    dims.bind("b", &[3, 5], ["inner", "columns"]).unwrap();
    let error = dims.bind("c", &[2, 4], ["rows", "columns"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "matmul.forward: `c` is [2, 4], but its dimension `columns` is 5 in `b`"
    );
    assert_eq!((dims.size("rows"), dims.size("inner"), dims.size("columns")), (2, 3, 5));
}

#[test]
fn a_dimension_that_stands_twice_in_one_tensor_must_agree_with_itself() {
    let mut dims = NamedDims::new("square");
    assert!(dims.bind("x", &[4, 4], ["n", "n"]).is_ok());
    let error = NamedDims::new("square").bind("x", &[4, 5], ["n", "n"]).unwrap_err();
    assert_eq!(error.to_string(), "square: `x` is [4, 5], but its dimension `n` is 4 in `x`");
}

#[test]
fn a_tensor_refused_for_its_rank_binds_nothing() {
    let mut dims = NamedDims::new("op");
    dims.bind("x", &[1], ["tokens", "hidden"]).unwrap_err();
    assert!(dims.bind("y", &[9], ["tokens"]).is_ok());
}

#[test]
fn the_rows_of_a_plan_name_every_buffer_with_its_dimensions_and_bytes() {
    let mut plan = Plan::new();
    plan.add("logits", DType::F32, &[("tokens", 3), ("vocabulary", 5)]);
    plan.add(String::from("ids"), DType::U32, &[("tokens", 3)]);
    plan.add("hidden", DType::BF16, &[("tokens", 33), ("hidden", 1)]);
    let rows: Vec<_> = plan.rows().collect();
    assert_eq!(
        rows,
        [
            ("logits", "tokens=3 vocabulary=5".to_string(), 60),
            ("ids", "tokens=3".to_string(), 12),
            ("hidden", "tokens=33 hidden=1".to_string(), 66),
        ]
    );
    // Each buffer begins on a boundary of 64 bytes: 60, 12 and 66 take 64, 64 and 128.
    assert_eq!(plan.bytes(), 256);
}

#[test]
fn a_plan_of_nothing_can_be_allocated() {
    let plan = Plan::new();
    assert_eq!((plan.rows().count(), plan.bytes()), (0, 0));
    plan.allocate(Device::Cpu).unwrap();
}

#[test]
fn devices_are_read_as_they_are_written() {
    for (name, device) in [
        ("cpu", Device::Cpu),
        ("emulated", Device::Emulated),
        ("cuda:0", Device::Cuda(0)),
        ("cuda:11", Device::Cuda(11)),
    ] {
        assert_eq!(Device::parse(name).unwrap(), device);
        assert_eq!(device.to_string(), name);
    }
    assert_eq!(Device::parse("cuda").unwrap(), Device::Cuda(0));
}

#[test]
fn an_unknown_device_is_told_what_devices_are_called() {
    for name in
        ["CPU", "", "tpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda:99999999999", "cuda:1 "]
    {
        let error = Device::parse(name).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")) && error.contains("`cpu`"), "{error}");
    }
}

#[test]
fn a_plan_that_no_machine_can_hold_names_its_largest_parts() {
    let mut plan = Plan::new();
    plan.add("small", DType::F32, &[("n", 3)]);
    plan.add("huge", DType::F32, &[("n", 1 << 60)]);
    let error = plan.allocate(Device::Cpu).err().unwrap();
    assert!(matches!(error, Error::OutOfMemory { device: Device::Cpu, free: None, .. }));
    assert_eq!(
        error.to_string(),
        "cpu is out of memory: 4096.0 PiB are needed; the largest parts are huge with 4096.0 PiB, small with 12 bytes"
    );
}
