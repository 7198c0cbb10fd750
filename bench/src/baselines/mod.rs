//! What is measured beside ours.

pub mod cublas;
pub mod gemm;
pub(crate) mod libraries;
#[cfg(feature = "cublas-sys")]
pub mod linked;

use std::rc::Rc;

use prime_runtime::Device;

/// The others that this process can run.
pub struct Baselines {
    /// cuBLASLt and cuBLAS, or why they are not there.
    pub cublas: Result<Rc<cublas::Cublas>, String>,
    /// The linked cuBLAS.
    #[cfg(feature = "cublas-sys")]
    pub linked: Result<Rc<linked::Linked>, String>,
}

impl Baselines {
    /// Those of a device.
    pub fn find(device: Device) -> Baselines {
        let Device::Cuda(number) = device else {
            return Baselines::none("it runs on GPUs only");
        };
        Baselines {
            cublas: cublas::Cublas::open(number).map(Rc::new).map_err(|error| format!("{error:#}")),
            #[cfg(feature = "cublas-sys")]
            linked: linked::Linked::open(number).map(Rc::new).map_err(|error| format!("{error:#}")),
        }
    }

    /// None of them, and why.
    pub fn none(why: &str) -> Baselines {
        Baselines {
            cublas: Err(why.to_owned()),
            #[cfg(feature = "cublas-sys")]
            linked: Err(why.to_owned()),
        }
    }
}
