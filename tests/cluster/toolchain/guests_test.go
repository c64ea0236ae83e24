package toolchain

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheLargeGuestsAreBuiltOnce says that what was built is kept.
func TestTheLargeGuestsAreBuiltOnce(t *testing.T) {
	var said strings.Builder
	folder, err := Guests(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Guests(t.Context(), &said)
	if err != nil {
		t.Fatal(err)
	}
	if again != folder || said.Len() > 0 {
		t.Errorf("the second call builds in %s, not %s, and says %q", again, folder, said.String())
	}
	for _, file := range []string{"go-net.wasm", "py-net.wasm", "py-http.wasm"} {
		if _, err := os.Stat(filepath.Join(folder, file)); err != nil {
			t.Error(err)
		}
	}
}
