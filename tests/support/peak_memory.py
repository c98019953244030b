"""Source text with which a process that a test starts reports its largest memory."""

# Not getrusage's ru_maxrss: across fork and exec it starts at that of the test process.
PEAK_KIB = r"""
def peak_kib():
    import re
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
"""
