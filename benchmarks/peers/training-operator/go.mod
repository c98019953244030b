// Kubeflow training-operator v1: a peer of the scale benchmark.
module video2world.dev/benchmarks/peers/training-operator

go 1.26.0

tool github.com/kubeflow/training-operator/cmd/training-operator.v1

require github.com/kubeflow/training-operator v1.9.3
