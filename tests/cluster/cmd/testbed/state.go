package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// place is the folder of one cluster.
type place string

// state tells other invocations about a running cluster. It is written when the
// cluster is ready and removed when it stops.
type state struct {
	Pid int
	// Started tells the process from a later one with its number: the time of
	// its start in clock ticks since boot (field 22 of /proc/PID/stat).
	Started  string
	Server   string
	Registry string
	Admin    string
	Join     string // kubeconfig by which a node asks for its certificate
	// Registries is the file by which krustlet reaches the registry.
	Registries string
	Holder     int
	Bin        string
}

var errNoCluster = errors.New("no cluster is running; start one with `testbed up`")

func (p place) file(name string) string { return filepath.Join(string(p), name) }

func (p place) write(s state) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	// Renamed into place: a reader sees all of it or none.
	if err := os.WriteFile(p.file("state.json.new"), text, 0o600); err != nil {
		return err
	}
	return os.Rename(p.file("state.json.new"), p.file("state.json"))
}

// read returns the running cluster's state, or errNoCluster.
func (p place) read() (state, error) {
	text, err := os.ReadFile(p.file("state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, errNoCluster
	}
	if err != nil {
		return state{}, err
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return state{}, fmt.Errorf("%s: %w", p.file("state.json"), err)
	}
	if started, err := startTime(s.Pid); err != nil || started != s.Started {
		return state{}, errNoCluster // it died without removing its state
	}
	return s, nil
}

// claim lets one process at a time run a cluster here. The kernel drops it with
// the process.
func (p place) claim() (*os.File, error) {
	if err := os.MkdirAll(string(p), 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(p.file("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("a cluster runs in %s already (%w); stop it with `testbed down`", p, err)
	}
	return file, nil
}

func startTime(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// Behind the name, which is in brackets and may hold any character, the
	// first field is the third of proc_pid_stat(5).
	_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	return fields[19], nil
}
