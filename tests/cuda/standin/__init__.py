"""A stand-in for GPUs: a torch device whose memory is the host's, and a driver that runs kernels on the CPU."""
