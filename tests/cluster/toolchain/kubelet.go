package toolchain

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
)

// kubelet is not among what every run needs: it is built when a recording is made.
var kubelet = step{module: "tests/cluster", packages: []string{"k8s.io/kubernetes/cmd/kubelet"}, ldflags: ldflags}

// BuildKubelet makes the kubelet beside the programs in bin (see [Build]) and
// returns its path.
func BuildKubelet(ctx context.Context, bin string, progress io.Writer) (string, error) {
	program := filepath.Join(bin, "kubelet")
	if exists(program) {
		return program, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	fmt.Fprintf(progress, "testbed: building kubelet %s; some minutes the first time\n", version)
	return program, kubelet.run(ctx, root, bin, progress)
}
