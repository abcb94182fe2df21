//! What a machine is to a placement: two memories, how fast each is read, and what it costs to go from one to the
//! other. The table describes machines that are not at hand; what was measured on one takes the same form.

/// A graphics card, or several alike that each have whole layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// How many there are; bytes are those of all.
    pub count: usize,
    /// Bytes of its memory.
    pub vram_bytes: u64,
    /// Bytes of it that driver and desktop keep.
    pub reserved_bytes: u64,
    /// Bytes per second that its kernels read of it.
    pub read: f64,
    /// Bytes per second that reach it from pinned memory.
    pub upload: f64,
    /// Seconds until one side, or the next card, has what the other made of a token.
    pub exchange: f64,
    /// Seconds per layer for launching kernels.
    pub launch: f64,
    /// Multiplications and additions per second, of matrices that meet many rows.
    pub compute: f64,
    /// Rows at which half of `compute` is reached.
    pub half_rows: f64,
}

/// What was measured of a card; medians.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CardRates {
    /// Bytes per second of a copy within the card, which counts what it reads and what it writes.
    pub copy: f64,
    /// Bytes per second of int8 weights that one token meets.
    pub read: f64,
    /// Bytes per second to it from pinned memory.
    pub upload: f64,
    /// Seconds until one side has what the other made.
    pub exchange: f64,
    /// Seconds of a kernel that does next to nothing, queued among such.
    pub kernel: f64,
    /// Operations per second of int8 weights, by two numbers of tokens.
    pub many: [(usize, f64); 2],
}

impl CardRates {
    /// The card as a planner takes it, with so many bytes of it and so many kernels for a layer.
    pub fn card(&self, vram_bytes: u64, kernels: f64) -> Card {
        let [(few, at_few), (many, at_many)] = self.many;
        // Rates that rise with the rows r as r / (r + half): two of them tell half, and what they rise to.
        let (few, many, ratio) = (few as f64, many as f64, at_many / at_few);
        let least = 1.0 + 1e-6;
        let ratio = ratio.clamp(least, many / few - 1e-6);
        let half_rows = many * few * (ratio - 1.0) / (many - few * ratio);
        Card {
            count: 1,
            vram_bytes,
            reserved_bytes: 0,
            read: self.read,
            upload: self.upload,
            exchange: self.exchange,
            launch: kernels * self.kernel,
            compute: at_many * (many + half_rows) / many,
            half_rows,
        }
    }
}

/// A machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// What it is called.
    pub name: &'static str,
    /// What it is, for people.
    pub about: &'static str,
    /// Bytes of main memory.
    pub ram_bytes: u64,
    /// Bytes of it that the system and other programs keep.
    pub reserved_bytes: u64,
    /// Bytes per second that all cores together read of it.
    pub read: f64,
    /// Multiplications and additions per second of all cores.
    pub compute: f64,
    /// Seconds per layer for waking threads.
    pub launch: f64,
    /// Its card, if it has one.
    pub card: Option<Card>,
}

/// What a machine is called that was measured.
pub const THIS: &str = "this";

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A card of 4 GB in a laptop: 82 % of its memory's nominal speed, eight lanes of PCIe 4.
const LAPTOP_CARD: Card = Card {
    count: 1,
    vram_bytes: 4 * GIB,
    reserved_bytes: 430 * MIB,
    read: 154e9,
    upload: 12.5e9,
    exchange: 30e-6,
    launch: 20e-6,
    compute: 7e12,
    half_rows: 64.0,
};

/// Two channels of DDR4-3200 at 82 % of their nominal speed, eight cores.
const LAPTOP: Machine = Machine {
    name: "laptop-3050-ddr4",
    about: "RTX 3050 4 GB on PCIe 4.0 x8, 8 cores, two channels of DDR4-3200",
    ram_bytes: 24 * GIB,
    reserved_bytes: 3 * GIB,
    read: 42e9,
    compute: 2e12,
    launch: 15e-6,
    card: Some(LAPTOP_CARD),
};

/// Machines that are described and not measured; the first is meant where none is named.
pub static MACHINES: &[Machine] = &[
    LAPTOP,
    Machine {
        name: "laptop-3050-ddr5",
        about: "the same with DDR5-4800",
        ram_bytes: 32 * GIB,
        read: 63e9,
        ..LAPTOP
    },
    Machine {
        name: "laptop-3050-ddr5-5600",
        about: "the same with DDR5-5600",
        ram_bytes: 32 * GIB,
        read: 73e9,
        ..LAPTOP
    },
    Machine {
        name: "laptop-3050-ddr4-pcie3",
        about: "RTX 3050 4 GB on PCIe 3.0 x8 or 4.0 x4, DDR4-3200",
        card: Some(Card { upload: 6.3e9, ..LAPTOP_CARD }),
        ..LAPTOP
    },
    Machine {
        name: "desktop-3060-ddr4",
        about: "RTX 3060 12 GB on PCIe 4.0 x16, 8 cores, DDR4-3200",
        ram_bytes: 32 * GIB,
        card: Some(Card { vram_bytes: 12 * GIB, read: 295e9, upload: 24e9, compute: 20e12, ..LAPTOP_CARD }),
        ..LAPTOP
    },
    Machine {
        name: "h200",
        about: "H200 on PCIe 5.0 x16, 16 cores of a server",
        ram_bytes: 128 * GIB,
        reserved_bytes: 4 * GIB,
        read: 150e9,
        compute: 5e12,
        launch: 15e-6,
        card: Some(Card {
            count: 1,
            vram_bytes: 139 * GIB,
            reserved_bytes: GIB,
            read: 3.6e12,
            upload: 50e9,
            exchange: 15e-6,
            launch: 12e-6,
            compute: 400e12,
            half_rows: 128.0,
        }),
    },
    Machine { name: "cpu-only", about: "8 cores, two channels of DDR4-3200, no card", card: None, ..LAPTOP },
];

impl Machine {
    /// This one, as it was measured.
    pub fn measured(read: f64, compute: f64, ram_bytes: u64, card: Option<Card>) -> Machine {
        // How long threads take to wake within a layer is not measured.
        let launch = MACHINES[0].launch;
        let (name, about) = (THIS, "this machine, as it was measured");
        Machine { name, about, ram_bytes, reserved_bytes: 0, read, compute, launch, card }
    }

    /// The described machine of that name.
    pub fn named(name: &str) -> Option<Machine> {
        MACHINES.iter().find(|machine| machine.name == name).copied()
    }

    /// The same with another amount of VRAM; a machine without a card has none to change.
    pub fn with_vram(mut self, bytes: u64) -> Machine {
        if let Some(card) = &mut self.card {
            card.vram_bytes = bytes;
        }
        self
    }

    /// The same with as many such cards as there are amounts of VRAM.
    pub fn with_cards(mut self, bytes: &[u64]) -> Machine {
        if let Some(card) = &mut self.card {
            let each = card.reserved_bytes / card.count as u64;
            card.count = bytes.len();
            card.reserved_bytes = each * bytes.len() as u64;
            card.vram_bytes = bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes));
        }
        self
    }

    /// Bytes of main memory for models.
    pub fn free_ram(&self) -> u64 {
        self.ram_bytes.saturating_sub(self.reserved_bytes)
    }

    /// The share of work that the card takes when it and the cores shall be done at the same time.
    pub fn balance(&self) -> f64 {
        self.card.map_or(0.0, |card| card.read / (card.read + self.read))
    }
}

impl Card {
    /// Bytes for models.
    pub fn free_vram(&self) -> u64 {
        self.vram_bytes.saturating_sub(self.reserved_bytes)
    }

    /// Operations per second where matrices meet so many rows.
    pub(super) fn compute_at(&self, rows: f64) -> f64 {
        self.compute * rows / (rows + self.half_rows)
    }
}
