// Package scenarios says what a cluster's user sees of krustlet: each file holds
// one idea, and each test drives the built binary through the API of a real
// control plane.
package scenarios

import (
	"os"
	"testing"

	"krustlet.dev/tests/cluster/bed"
)

func TestMain(m *testing.M) { os.Exit(bed.Main(m)) }
