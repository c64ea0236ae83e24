package bed

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/netip"
	"os"
	"testing"

	"krustlet.dev/tests/cluster/room"
)

// Secure starts somebody outside the cluster's pods who answers requests by HTTPS
// with a text, for one test. It returns its URL and the certificate of the
// authority that vouches for it, of which nobody else knows.
func (b *Bed) Secure(t testing.TB, text string) (url, authority string) {
	t.Helper()
	address := b.cluster.Room.Address(1)
	signer, file, err := b.cluster.NewAuthority("private-ca")
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := signer.Server("somebody", nil, []netip.Addr{address})
	if err != nil {
		t.Fatal(err)
	}
	own, err := tls.X509KeyPair(pair.Certificate, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := room.Listen(b.cluster.Room.Network(), address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{own}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, text) // who is gone is gone
		}),
	}
	go func() { _ = server.ServeTLS(listener, "", "") }() // ends with the test
	t.Cleanup(func() { server.Close() })
	return "https://" + listener.Addr().String() + "/", string(certificate)
}
