// Kubeflow Trainer v2: a peer of the scale benchmark.
module video2world.dev/benchmarks/peers/trainer

go 1.26.0

tool github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager

require github.com/kubeflow/trainer/v2 v2.1.0
