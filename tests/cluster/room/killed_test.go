package room

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// inChild tells this test binary that it is the process to be killed.
const inChild = "ROOM_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(inChild) == "" {
		os.Exit(m.Run())
	}
	room, err := Open()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	process, err := room.Start(Command{Name: "sleep", Path: "/bin/sleep", Args: []string{"1000"}, Log: os.DevNull})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(room.Holder(), process.Pid())
	select {}
}

func TestKillingTheProcessThatMadeARoomEndsAllInIt(t *testing.T) {
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), inChild+"=1")
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	for _, word := range strings.Fields(line) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			t.Fatalf("the child said %q", line)
		}
		gone(t, pid)
	}
}
