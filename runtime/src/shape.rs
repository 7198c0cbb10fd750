//! Shapes, and the check that a call's tensors agree on their named dimensions.

use crate::{Error, Result};

/// The most dimensions a tensor may have.
pub const MAX_RANK: usize = 4;

/// Up to [`MAX_RANK`] dimensions, stored in place so that making a view allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: usize,
}

impl Shape {
    /// The shape with these dimensions.
    ///
    /// # Panics
    /// With more than [`MAX_RANK`] of them.
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= MAX_RANK, "a tensor has at most {MAX_RANK} dimensions, got {dims:?}");
        let mut shape = Shape { dims: [1; MAX_RANK], rank: dims.len() };
        shape.dims[..dims.len()].copy_from_slice(dims);
        shape
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// How many elements.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// Elements of one row: the product of all dimensions but the first.
    pub fn row_elements(&self) -> usize {
        self.dims().iter().skip(1).product()
    }

    pub(crate) fn with_first(mut self, first: usize) -> Self {
        self.dims[0] = first;
        self
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

/// Binds dimension names to sizes as a call's tensors are looked at, and says which two disagree.
///
/// ```
/// # use prime_runtime::NamedDims;
/// let mut dims = NamedDims::new("rms_norm.forward");
/// dims.bind("x", &[7, 64], ["tokens", "hidden"]).unwrap();
/// let error = dims.bind("weight", &[32], ["hidden"]).unwrap_err().to_string();
/// assert_eq!(error, "rms_norm.forward: `weight` is [32], but its dimension `hidden` is 64 in `x`");
/// ```
pub struct NamedDims {
    operation: &'static str,
    bound: [(&'static str, &'static str, usize); 12],
    count: usize,
}

impl NamedDims {
    /// An empty table for one call of `operation`.
    pub fn new(operation: &'static str) -> Self {
        NamedDims { operation, bound: [("", "", 0); 12], count: 0 }
    }

    /// Checks that `dims` has as many dimensions as `names`, and that each name has one size in the whole call.
    ///
    /// # Errors
    /// [`Error::Shape`] names the tensor, the dimension, and the tensor it disagrees with.
    pub fn bind<const N: usize>(
        &mut self,
        tensor: &'static str,
        dims: &[usize],
        names: [&'static str; N],
    ) -> Result<()> {
        if dims.len() != N {
            return self.fail(format!("`{tensor}` is {dims:?}, expected [{}]", names.join(", ")));
        }
        for (&size, name) in dims.iter().zip(names) {
            match self.bound[..self.count].iter().find(|(bound, ..)| *bound == name) {
                Some(&(_, owner, expected)) if expected != size => {
                    return self.fail(format!(
                        "`{tensor}` is {dims:?}, but its dimension `{name}` is {expected} in `{owner}`"
                    ));
                }
                Some(_) => {}
                None => {
                    self.bound[self.count] = (name, tensor, size);
                    self.count += 1;
                }
            }
        }
        Ok(())
    }

    /// The size of a bound dimension.
    ///
    /// # Panics
    /// If no tensor bound it.
    pub fn size(&self, name: &str) -> usize {
        self.bound[..self.count]
            .iter()
            .find(|(bound, ..)| *bound == name)
            .expect("dimension was bound")
            .2
    }

    /// An [`Error::Shape`] of this operation.
    pub fn fail<T>(&self, message: String) -> Result<T> {
        Err(Error::Shape { operation: self.operation, message })
    }
}
