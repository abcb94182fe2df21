//! The kernels' texts, as `cargo xtask ptx` made them.

use bantam_core::cuda::Kernel;

/// Cards below this compute capability are not for us.
pub(crate) const OLDEST: (u32, u32) = (7, 5);

/// The driver that reads our texts, as drivers count: 12.2.
pub(crate) const DRIVER: u32 = 12_020;

/// Sources that became one text, for compute capability 7.5, and for 8.0 and above.
#[derive(Debug)]
pub(crate) struct Module {
    texts: [&'static str; 2],
}

impl Module {
    /// The text for a card of some compute capability, which is at least [`OLDEST`].
    pub(crate) fn text(&self, capability: (u32, u32)) -> &'static str {
        self.texts[usize::from(capability >= (8, 0))]
    }

    /// Which of the kernels are in it.
    pub(crate) fn kernels(&self) -> impl Iterator<Item = Kernel> + '_ {
        let all = Kernel::ALL.iter().copied();
        all.filter(|kernel| self.texts[0].contains(&format!(".entry {}(", kernel.name())))
    }
}

macro_rules! modules {
    ($($(#[$doc:meta])+ $list:ident: $($name:literal)*;)*) => {$(
        $(#[$doc])+
        pub(crate) static $list: &[Module] = &[$(Module {
            texts: [
                include_str!(concat!("../../core/src/cuda/ptx/", $name, ".75.ptx")),
                include_str!(concat!("../../core/src/cuda/ptx/", $name, ".80.ptx")),
            ],
        },)*];
    )*};
}

modules! {
    /// What a decoder needs.
    FORWARD: "norm" "rope" "activation" "experts" "attention" "panels" "wide" "code8" "float" "integer" "tensor";
    /// What training needs beside it: a driver takes its time to read a text.
    BACKWARD: "norm_back" "activation_back" "experts_back" "documents" "loss" "products_back";
}
