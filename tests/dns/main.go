// Command coredns is CoreDNS with the plugins that the tests need. The
// project's own command links every cloud's client; this one does not.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

// Plugins run in this order, which is CoreDNS's own (plugin.cfg).
func init() {
	dnsserver.Directives = []string{"bind", "ready", "errors", "log", "template", "kubernetes"}
}

func main() { coremain.Run() }
