package room

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Command is a program to run in the room.
type Command struct {
	Name string // for messages
	Path string
	Args []string
	Env  []string // added to this process's environment
	Log  string   // file that takes both outputs, appended to
}

// Process is a running program. It is killed when its room is closed.
type Process struct {
	Name string
	Log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; valid once done is closed
}

// Start runs a program in the room.
func (r *Room) Start(c Command) (*Process, error) {
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env = append(environment(), c.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: Ctrl-C in the developer's terminal reaches the test
	// bed only, which then stops everything in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.start(cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Name, err)
	}
	process := &Process{Name: c.Name, Log: c.Log, cmd: cmd, done: make(chan struct{})}
	go func() {
		process.err = cmd.Wait()
		close(process.done)
	}()
	r.mu.Lock()
	r.processes = append(r.processes, process)
	r.mu.Unlock()
	return process, nil
}

// Run runs a program in the room to its end and returns its standard output.
// The error tells what it wrote to standard error.
func (r *Room) Run(c Command) (string, error) {
	stdout, stderr := &strings.Builder{}, &strings.Builder{}
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env = append(environment(), c.Env...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := r.start(cmd); err != nil {
		return "", fmt.Errorf("starting %s: %w", c.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", c.Name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Pid is the process's number outside the room.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running is false once the process has ended; then the error tells how.
func (p *Process) Running() (bool, error) {
	select {
	case <-p.done:
		return false, fmt.Errorf("%s ended (%s); the end of its log:\n%s", p.Name, p.cmd.ProcessState, p.Tail())
	default:
		return true, nil
	}
}

// Signal signals the process; one that has ended is no error.
func (p *Process) Signal(signal os.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Stop asks the process to end and waits; after the grace it is killed, which
// is an error.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
		p.Kill()
		return fmt.Errorf("%s did not stop within %s of SIGTERM", p.Name, grace)
	}
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

// Tail is the end of the log, at most 8 KiB.
func (p *Process) Tail() string { return Tail(p.Log) }

// Tail is the end of a file, at most 8 KiB, or why it cannot be read.
func Tail(path string) string {
	const most = 8 << 10
	file, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer file.Close()
	if size, err := file.Seek(0, io.SeekEnd); err == nil {
		_, _ = file.Seek(max(0, size-most), io.SeekStart)
	}
	text, err := io.ReadAll(io.LimitReader(file, most))
	if err != nil {
		return err.Error()
	}
	return string(text)
}
