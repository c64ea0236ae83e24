package room

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Resident is a process found in the room, started by whomever.
type Resident struct {
	Pid       int // outside the room
	Parent    int
	UID       uint32
	Program   os.FileInfo // compare with os.SameFile; its name is "exe"
	Arguments []string
}

// Residents lists the processes in the room that still run, process 1 excepted.
// It is a look at a moving thing: some may have ended when it returns.
func (r *Room) Residents() ([]Resident, error) {
	room, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", r.Holder()))
	if err != nil {
		return nil, err
	}
	folders, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []Resident
	for _, folder := range folders {
		// Errors mean that the process ended meanwhile.
		space, err := os.Readlink(filepath.Join(folder, "ns", "pid"))
		if err != nil || space != room {
			continue
		}
		text, err := os.ReadFile(filepath.Join(folder, "stat"))
		if err != nil {
			continue
		}
		stat, ok := parseStat(string(text))
		if !ok || stat.state == "Z" || stat.pid == r.Holder() {
			continue
		}
		status, err := os.ReadFile(filepath.Join(folder, "status"))
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join(folder, "cmdline"))
		if err != nil {
			continue
		}
		program, err := os.Stat(filepath.Join(folder, "exe"))
		if err != nil {
			continue
		}
		found = append(found, Resident{Pid: stat.pid, Parent: stat.parent, UID: effectiveUID(string(status)), Program: program,
			Arguments: strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")})
	}
	return found, nil
}

// stat is the part of /proc/PID/stat that is of use here (proc_pid_stat(5)).
type stat struct {
	pid, parent int
	state       string
}

func parseStat(line string) (stat, bool) {
	// The name is in brackets and may hold anything, brackets and spaces too.
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 1 || end < open {
		return stat{}, false
	}
	rest := strings.Fields(line[end+1:])
	if len(rest) < 2 {
		return stat{}, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line[:open]))
	if err != nil {
		return stat{}, false
	}
	parent, err := strconv.Atoi(rest[1])
	return stat{pid: pid, parent: parent, state: rest[0]}, err == nil
}

// effectiveUID reads /proc/PID/status. The owner of /proc/PID would not do: it
// is root for a process that may not dump core, as sandboxes are.
func effectiveUID(status string) uint32 {
	for line := range strings.Lines(status) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "Uid:" {
			uid, err := strconv.ParseUint(fields[2], 10, 32)
			if err == nil {
				return uint32(uid)
			}
		}
	}
	return 0
}
