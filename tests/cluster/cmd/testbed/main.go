// Command testbed gives a developer the cluster that the tests run against.
//
//	go run ./cmd/testbed build             builds the control plane, kubectl, a registry and the large guests
//	go run ./cmd/testbed up                starts a cluster; Ctrl-C stops it
//	go run ./cmd/testbed up -d             the same in the background
//	go run ./cmd/testbed down              stops the one that `up` started
//	go run ./cmd/testbed kubeconfig NODE   prints the path of a node's kubeconfig
//
// The control plane runs in namespaces of its own (package room); its addresses
// are reached from the host too. Needs root and the program `ip`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"krustlet.dev/tests/cluster/controlplane"
	"krustlet.dev/tests/cluster/toolchain"
)

const usage = `usage: testbed build
       testbed up [-d] [-name NAME]
       testbed down [-name NAME]
       testbed kubeconfig [-name NAME] NODE
`

func main() {
	// A second signal ends the program at once; the room goes with it.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("no command\n" + usage)
	}
	flags := flag.NewFlagSet("testbed", flag.ExitOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage); flags.PrintDefaults() }
	name := flags.String("name", "default", "which cluster, if there are several")
	background := flags.Bool("d", false, "up: return when the cluster is ready and leave it running")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	cache, err := toolchain.Cache()
	if err != nil {
		return err
	}
	if *name != filepath.Base(*name) || *name == "." || *name == ".." {
		return fmt.Errorf("%q cannot be a cluster's name", *name)
	}
	place := place(filepath.Join(cache, "clusters", *name))

	switch command := args[0]; {
	case command == "build" && flags.NArg() == 0:
		bin, err := toolchain.Build(ctx, os.Stderr)
		if err != nil {
			return err
		}
		if _, err := toolchain.Guests(ctx, os.Stderr); err != nil {
			return err
		}
		fmt.Println(bin)
		return nil
	case command == "up" && flags.NArg() == 0 && *background:
		return upInBackground(ctx, place, *name)
	case command == "up" && flags.NArg() == 0:
		return up(ctx, place)
	case command == "down" && flags.NArg() == 0:
		return down(place)
	case command == "kubeconfig" && flags.NArg() == 1:
		state, err := place.read()
		if err != nil {
			return err
		}
		path, err := controlplane.NodeKubeconfig(string(place), state.Server, flags.Arg(0))
		if err != nil {
			return err
		}
		fmt.Println(path)
		return nil
	default:
		return fmt.Errorf("cannot make sense of %q\n%s", args, usage)
	}
}
