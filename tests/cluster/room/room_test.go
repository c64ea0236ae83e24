package room

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func open(t *testing.T) *Room {
	t.Helper()
	room, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(room.Close)
	return room
}

func gone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d is still there", pid)
		}
	}
}

func TestTheRoomHasItsOwnProcessesAndNetwork(t *testing.T) {
	room := open(t)
	out, err := room.Run(Command{Name: "sh", Path: "/bin/sh", Args: []string{"-c", "cat /proc/1/comm; ip -brief link"}})
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(out), "\n"); lines[0] != "sh" || len(lines) != 3 {
		t.Errorf("want process 1 to be the holder, and the links lo and node0; got\n%s", out)
	}
}

func TestTheHostReachesAddressesOfTheRoom(t *testing.T) {
	room := open(t)
	address, err := room.AddAddress(7)
	if err != nil {
		t.Fatal(err)
	}
	// Refused means that the address answers; any other error that it does not.
	_, err = net.DialTimeout("tcp", net.JoinHostPort(address.String(), "9"), 5*time.Second)
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("want the connection refused by %s, got %v", address, err)
	}
}

func TestRoomsDoNotShareASubnet(t *testing.T) {
	if a, b := open(t), open(t); a.Address(1) == b.Address(1) {
		t.Errorf("both rooms have %s", a.Address(1))
	}
}

func TestClosingKillsWhatAProcessLeftBehind(t *testing.T) {
	room := open(t)
	log := filepath.Join(t.TempDir(), "log")
	process, err := room.Start(Command{Name: "parent", Path: "/bin/sh", Log: log,
		Args: []string{"-c", "setsid sleep 1000 & echo started; wait"}})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); !strings.Contains(process.Tail(), "started"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the parent wrote nothing")
		}
	}
	left := children(t, process.Pid())
	process.Kill()
	if err := syscall.Kill(left[0], 0); err != nil {
		t.Fatalf("the child died with its parent: %v", err)
	}
	room.Close()
	gone(t, left[0])
}

func TestAnOrphanThatEndsIsReaped(t *testing.T) {
	room := open(t)
	process, err := room.Start(Command{Name: "parent", Path: "/bin/sh", Log: filepath.Join(t.TempDir(), "log"),
		Args: []string{"-c", "sleep 1000 & wait"}})
	if err != nil {
		t.Fatal(err)
	}
	var left []int
	for end := time.Now().Add(10 * time.Second); len(left) == 0; time.Sleep(10 * time.Millisecond) {
		if left = children(t, process.Pid()); time.Now().After(end) {
			t.Fatal("the parent started nothing")
		}
	}
	process.Kill()
	if err := syscall.Kill(left[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, left[0])
}

func children(t *testing.T, pid int) []int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		if stat, ok := parseStat(string(text)); ok && stat.parent == pid {
			found = append(found, stat.pid)
		}
	}
	return found
}
