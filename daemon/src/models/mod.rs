//! The models of a machine: what a name means (`catalog.rs`), how it is to be loaded (`recipe.rs`), what a loaded one
//! is (`resident.rs`), and who has it for how long (`keeper.rs`, which does what the policy in `residency/` decides).

pub(crate) mod catalog;
pub(crate) mod keeper;
pub(crate) mod opened;
pub(crate) mod recipe;
pub(crate) mod resident;
pub(crate) mod views;

pub(crate) use catalog::{Catalog, Known, NotFound};
pub(crate) use keeper::{Keeper, Lease, ReservedVram, Unavailable};
pub(crate) use opened::{Opened, Unusable};
pub(crate) use recipe::Asked;
pub(crate) use resident::Resident;
