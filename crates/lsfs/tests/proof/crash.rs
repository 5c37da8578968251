//! Crashes at every operation of a recorded workload: the driver.
//!
//! A seeded workload runs on the simulated disk and is recorded. For every operation of the recording the disk is made
//! that a machine would find if power failed during it, in every style of losing, tearing and reordering what was not
//! synced, and the one on which the process was killed and power did not fail. What is found there is compared with
//! what had been acknowledged. Then the next generation of the workload runs on one of these disks, its opening
//! included, so that crashes hit recovery and what recovery left.
//!
//! Whatever keeps bytes can be crashed: implement [`Workload`] and call [`crash_images`].

use lsfs::io::{CrashStyle, SimDisk};

use crate::support::{Choices, budget};

/// Something that is crashed: what a generation of it does, and what a crash may leave of it.
pub(crate) trait Workload {
    /// What the disk holds, as its user sees it.
    type State: Clone + PartialEq;
    /// What a generation was told, and after which operation of the recording.
    type History;
    /// What is open at the end of a generation; it is dropped after its process was killed.
    type Open;

    fn new(seed: u64) -> Self;

    /// How many generations there are, each going on from what a crash of the one before left.
    fn generations(&self) -> u64;

    /// What is on an empty disk.
    fn nothing(&self) -> Self::State;

    /// Runs a generation on a disk that holds `found`; an error is what a correct engine never does.
    fn run(
        &self,
        disk: &SimDisk,
        generation: u64,
        found: Self::State,
    ) -> Result<(Self::History, Self::Open), String>;

    /// Opens what a crash left, with randomness from `seed`, and reads all of it; `thorough` in every way there is.
    /// Afterwards the disk's process has ended.
    fn recover(&self, disk: &SimDisk, seed: u64, thorough: bool) -> Result<Self::State, String>;

    /// After which operation of the recording the generation's first opening had returned.
    fn opened(&self, history: &Self::History) -> usize;

    /// Whether that may be found after a crash during operation `point`.
    fn judge(&self, history: &Self::History, point: usize, found: &Self::State) -> Result<(), String>;

    /// The history, for messages.
    fn show(&self, history: &Self::History) -> String;
}

/// How a generation ends.
#[derive(Clone, Copy, Debug)]
enum End {
    PowerFailure(CrashStyle),
    Kill,
}

impl End {
    /// Whether the disk it leaves is worth going on from.
    fn leaves_a_mess(self) -> bool {
        match self {
            End::PowerFailure(style) => style.is_random() || style == CrashStyle::OnlyHeaderSector,
            End::Kill => true,
        }
    }
}

/// Crashes the workload of this seed everywhere; answers the number of disks that were looked at.
///
/// # Errors
/// The first finding: what was promised and does not hold.
pub(crate) fn crash_everywhere<W: Workload>(seed: u64) -> Result<u64, String> {
    let workload = W::new(seed);
    let mut images = 0;
    let mut disk = SimDisk::new(seed);
    let mut state = workload.nothing();
    // After a kill nothing that was found is durable before it was opened: until then the generations before decide.
    let mut killed: Vec<(W::History, usize)> = Vec::new();
    for generation in 0..workload.generations() {
        disk.start_trace();
        let (history, open) = workload
            .run(&disk, generation, state)
            .map_err(|problem| format!("seed {seed}, generation {generation}, running: {problem}"))?;
        let trace = disk.stop_trace();
        drop(disk.restart());
        drop(open);
        let mut crash_images = trace.images();
        let mut choices = Choices::new(seed ^ (generation << 32));
        let next_start = choices.below(trace.len() as u64 + 1) as usize;
        let mut next = None;
        loop {
            let point = crash_images.crash_point();
            let styles: &[CrashStyle] =
                if crash_images.unsynced() == 0 { &CrashStyle::ALL[..1] } else { &CrashStyle::ALL };
            for end in styles.iter().map(|&style| End::PowerFailure(style)).chain([End::Kill]) {
                let draw = choices.next();
                let image = || match end {
                    End::PowerFailure(style) => crash_images.image(style, draw),
                    End::Kill => crash_images.killed(draw),
                };
                let found = look(&workload, &image(), end, draw, images % 8 == 0).and_then(|found| {
                    let judged = workload.judge(&history, point, &found);
                    let is_opening = point < workload.opened(&history);
                    let admitted_before =
                        || killed.iter().any(|(before, at)| workload.judge(before, *at, &found).is_ok());
                    judged.or_else(
                        |problem| if is_opening && admitted_before() { Ok(()) } else { Err(problem) },
                    )?;
                    Ok(found)
                });
                let found = found.map_err(|problem| {
                    let (operation, history) = (trace.describe(point), workload.show(&history));
                    format!(
                        "seed {seed}, generation {generation}, {operation}, {end:?}: {problem}\n{history}"
                    )
                })?;
                images += 1;
                let goes_on = point >= next_start && next.is_none() && end.leaves_a_mess();
                if goes_on && choices.below(3) == 0 {
                    next = Some((image(), found, point, end));
                }
            }
            if !crash_images.advance() {
                break;
            }
        }
        let Some((image, found, point, end)) = next else { return Ok(images) };
        (disk, state) = (image, found);
        if point >= workload.opened(&history) || !matches!(end, End::Kill) {
            killed.clear();
        }
        if matches!(end, End::Kill) {
            killed.push((history, point));
        }
    }
    Ok(images)
}

fn look<W: Workload>(
    workload: &W,
    disk: &SimDisk,
    end: End,
    seed: u64,
    thorough: bool,
) -> Result<W::State, String> {
    let found = workload.recover(disk, seed, thorough)?;
    if matches!(end, End::Kill) {
        // What was found in the machine's memory, and answered, has to be on the medium by now.
        let later = disk.power_fail(CrashStyle::NothingUnsynced, 0);
        let left = workload
            .recover(&later, !seed, false)
            .map_err(|problem| format!("opened, then power failed: {problem}"))?;
        if left != found {
            return Err("opened, then power failed: not what the first opening answered".to_string());
        }
    }
    Ok(found)
}

/// Crashes workloads of growing seeds until so many disks were looked at; panics at a finding.
///
/// `LSFS_CRASH_IMAGES` replaces the number, `LSFS_CRASH_SEED` the first seed.
pub(crate) fn crash_images<W: Workload>(what: &str, wanted: u64) {
    let wanted = budget("LSFS_CRASH_IMAGES", wanted);
    let first_seed = budget("LSFS_CRASH_SEED", 1);
    let (mut images, mut seed) = (0, first_seed);
    while images < wanted {
        images += crash_everywhere::<W>(seed).unwrap_or_else(|finding| panic!("{what}: {finding}"));
        seed += 1;
    }
    eprintln!("{images} crash images of {what}, seeds {first_seed}..{seed}");
}
