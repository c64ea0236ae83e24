// Package toolchain builds the programs that the test bed runs, from the
// modules this repository pins, and keeps them in the user's cache. It knows
// where things lie and how they are built; it starts none of them.
package toolchain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Programs are what [Build] makes, by file name.
var Programs = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "registry",
	"coredns", "kube-proxy",
}

// Root finds the top of the repository, going up from the working directory
// (`go test` starts a test in its package's folder).
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if exists(filepath.Join(dir, "Cargo.toml")) && exists(filepath.Join(dir, "tests", "cluster", "go.mod")) {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("not inside a checkout of krustlet: no folder above has Cargo.toml and tests/cluster/go.mod")
		}
		dir = up
	}
}

// Cache is the folder for everything the test bed keeps between runs.
func Cache() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder: %w", err)
	}
	return filepath.Join(cache, "krustlet", "testbed"), nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
