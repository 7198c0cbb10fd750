//! Argument structs of kernels, written once in Rust and once in `.cu`, and compared by a test.

/// The fields of an argument struct in order, by name and Rust type.
#[derive(Clone, Copy, Debug)]
pub struct StructLayout {
    /// Its name, in Rust and in the `.cu` text.
    pub name: &'static str,
    /// Field names and types.
    pub fields: &'static [(&'static str, &'static str)],
}

/// A struct that a kernel takes by value.
pub(crate) trait DeviceStruct: Copy {
    /// What the test compares with the `.cu` text.
    const LAYOUT: StructLayout;
}

/// Declares an argument struct of a kernel. Fields are `Pointer`, `u32`, `u64`, `i32`, `f32` or `f64`, as `Global<...>`, `u32`, `u64`,
/// `i32`, `float` and `double` in the `.cu` text, or structs declared so.
macro_rules! device_struct {
    ($($(#[$meta:meta])* struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy)]
        // The kernel reads the fields.
        #[allow(dead_code)]
        struct $name { $($(#[$field_meta])* $field: $type),* }

        impl $crate::device::DeviceStruct for $name {
            const LAYOUT: $crate::device::StructLayout = $crate::device::StructLayout {
                name: stringify!($name),
                fields: &[$((stringify!($field), stringify!($type))),*],
            };
        }
    )*};
}
pub(crate) use device_struct;
