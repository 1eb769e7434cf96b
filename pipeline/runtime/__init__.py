"""The machine and the processes of a job: device, ranks, signals, progress, reading ahead."""
