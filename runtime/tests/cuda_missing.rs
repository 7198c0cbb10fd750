//! What a machine without CUDA says. On a machine that has it, the tests say that they were skipped.

use prime_runtime::{DType, Device, Tensor, cuda};

#[test]
fn without_a_driver_the_sentence_says_what_was_looked_for_and_where_and_the_host_goes_on() {
    let Err(error) = cuda::device_count() else { return println!("skipped: there is a driver") };
    let error = error.to_string();
    println!("{error}");
    for part in ["libcuda.so.1", "/usr/lib64", "install the driver", "PRIME_CUDA_LIBRARIES"] {
        assert!(error.contains(part), "{error}");
    }
    for attempt in [
        Tensor::zeros(Device::Cuda(0), DType::F32, &[1]).map(|_| ()),
        cuda::properties(0).map(|_| ()),
        cuda::synchronize(0),
        cuda::ready(0),
    ] {
        assert_eq!(attempt.unwrap_err().to_string(), error);
    }
    Tensor::zeros(Device::Cpu, DType::F32, &[1]).unwrap();
}

#[test]
fn without_a_compiler_the_sentence_says_what_was_looked_for_and_how_to_get_it() {
    let Err(error) = cuda::compiler_library() else {
        return println!("skipped: there is a compiler");
    };
    let error = error.to_string();
    println!("{error}");
    for part in ["libnvrtc.so.13", "/usr/local/cuda/lib64", "pip install", "PRIME_CUDA_LIBRARIES"] {
        assert!(error.contains(part), "{error}");
    }
    let program = cuda::Program { name: "x.cu", source: "", headers: &[] };
    let chip = cuda::Chip { major: 9, minor: 0 };
    assert_eq!(cuda::compile(&program, "x", chip).unwrap_err().to_string(), error);
}
