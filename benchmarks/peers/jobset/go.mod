// JobSet, which Trainer v2 makes: a peer of the scale benchmark.
module video2world.dev/benchmarks/peers/jobset

go 1.26.0

tool sigs.k8s.io/jobset

require sigs.k8s.io/jobset v0.10.1
