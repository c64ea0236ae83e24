package toolchain

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// guests are the sources of what [Guests] makes.
var guests = []string{"guests/build-large.sh", "guests/Cargo.lock", "guests/go-net", "guests/python"}

// Guests makes the guests that are too large to be checked in, unless they are
// there, and returns their folder. Cold it takes about a minute on two cores.
func Guests(ctx context.Context, progress io.Writer) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	var files []string
	for _, source := range guests {
		err := filepath.WalkDir(filepath.Join(root, source), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Name() == "__pycache__" {
				return fs.SkipDir
			}
			if err == nil && entry.Type().IsRegular() {
				path, err = filepath.Rel(root, path)
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			return "", err
		}
	}
	stamp, err := stamp(root, files)
	if err != nil {
		return "", err
	}
	made := filepath.Join(cache, "guests", stamp)

	unlock, err := lock(cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(made) {
		// Its age says when it was last of use; see prune. No harm if it cannot.
		_ = os.Chtimes(made, time.Now(), time.Now())
		return made, nil
	}
	partial := made + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", err
	}
	fmt.Fprintln(progress, "testbed: building the large guests; a minute the first time")
	build := exec.CommandContext(ctx, filepath.Join(root, "guests", "build-large.sh"), partial)
	build.Env = append(os.Environ(), "GUEST_TOOLS_DIR="+filepath.Join(cache, "guest-tools"))
	build.Stdout, build.Stderr = progress, progress
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("guests/build-large.sh: %w", err)
	}
	if err := os.Rename(partial, made); err != nil {
		return "", err
	}
	return made, prune(filepath.Join(cache, "guests"), "")
}
