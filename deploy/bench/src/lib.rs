//! What the benchmarks share: processor times, quantiles, a mesh around measured programs, and load.
//!
//! Each benchmark is a program that prints ratios taken in one run, since machines differ.

pub mod load;
pub mod mesh;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

/// The processor time that this process has used, by all of its threads, in steps of 10 ms.
///
/// # Errors
/// Where there is no `/proc`.
pub fn processor_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Behind the program's name, which may hold anything but a last parenthesis.
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .context("/proc/self/stat has another form than expected")?
        .1
        .split(' ')
        .collect();
    // utime and stime are the 14th and 15th of all, in clock ticks, of which Linux counts 100 a second.
    let ticks = |field: usize| -> anyhow::Result<u64> {
        Ok(fields.get(field).context("/proc/self/stat is too short")?.parse()?)
    };
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}

/// The names of a process's threads, as far as Linux keeps them, and the processor time of each, to the
/// nanosecond.
///
/// # Errors
/// Where there is no `/proc/PID/task/*/schedstat`.
pub fn thread_times(pid: u32) -> anyhow::Result<Vec<(String, Duration)>> {
    let mut times = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let read = |file: &str| std::fs::read_to_string(task.join(file));
        let (Ok(stat), Ok(name)) = (read("schedstat"), read("comm")) else {
            // It has just ended.
            continue;
        };
        times.push((name.trim().to_owned(), on_cpu(&stat)?));
    }
    Ok(times)
}

/// The processor time of this thread, to the nanosecond.
///
/// # Errors
/// Where there is no `/proc/thread-self/schedstat`.
pub fn thread_time() -> anyhow::Result<Duration> {
    on_cpu(&std::fs::read_to_string("/proc/thread-self/schedstat")?)
}

fn on_cpu(schedstat: &str) -> anyhow::Result<Duration> {
    let on_cpu = schedstat.split(' ').next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(on_cpu.parse()?))
}

/// An address of this machine that nobody listens on.
///
/// # Errors
/// When there is none.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Takes this process's settings from a command's environment. Those stay that the command was given.
pub fn without_settings(command: &mut Command) -> &mut Command {
    for (variable, _) in std::env::vars_os() {
        let is_given = command.get_envs().any(|(name, _)| *name == *variable);
        if !is_given && variable.to_string_lossy().starts_with("TOURIN_") {
            command.env_remove(variable);
        }
    }
    command
}

/// The value below which this part of the figures lies; 0 without figures.
pub fn quantile_of(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    // A rank: never negative, never above `last`.
    values.get((last as f64 * part).round() as usize).copied().unwrap_or_default()
}

/// The value below which this part of the values lies; `None` without values.
pub fn quantile(values: &mut [Duration], part: f64) -> Option<Duration> {
    values.sort_unstable();
    let last = values.len().checked_sub(1)?;
    // A rank: never negative, never above `last`.
    let rank = (last as f64 * part).round() as usize;
    values.get(rank).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_ranks() {
        let mut values: Vec<_> = (1..=101).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&mut values, 0.5), Some(Duration::from_millis(51)));
        assert_eq!(quantile(&mut values, 0.99), Some(Duration::from_millis(100)));
        assert_eq!(quantile(&mut [], 0.5), None);
    }

    #[test]
    fn work_takes_processor_time() {
        let before = processor_time().unwrap();
        let mut sum = 0_u64;
        while processor_time().unwrap() < before + Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(sum > 0);
    }
}
