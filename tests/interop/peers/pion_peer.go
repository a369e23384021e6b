// A pion/dtls 2 peer with certificates: (client|server) port suite certificate key authority.
// A "-" stands for what it has not, or leaves to the library: without an authority, it takes any certificate,
// and as a server it asks for none.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/pion/dtls/v2"
)

func main() {
	role, certificate, key, authority := os.Args[1], os.Args[4], os.Args[5], os.Args[6]
	config := &dtls.Config{
		ExtendedMasterSecret: dtls.RequireExtendedMasterSecret,
		ServerName:           "localhost",
	}
	if os.Args[3] != "-" {
		config.CipherSuites = []dtls.CipherSuiteID{dtls.CipherSuiteID(number(os.Args[3]))}
	}
	if certificate != "-" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		check(err)
		config.Certificates = []tls.Certificate{pair}
	}
	if authority != "-" {
		pem, err := os.ReadFile(authority)
		check(err)
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(pem)
		config.ClientCAs = config.RootCAs
		config.ClientAuth = dtls.RequireAndVerifyClientCert
	} else {
		config.InsecureSkipVerify = true
	}
	address := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(number(os.Args[2]))}
	if role == "client" {
		client(address, config)
	} else {
		server(address, config)
	}
}

func client(address *net.UDPAddr, config *dtls.Config) {
	connection, err := dtls.Dial("udp", address, config)
	check(err)
	fmt.Println("connected")
	_, err = connection.Write([]byte("hello"))
	check(err)
	buffer := make([]byte, 2048)
	check(connection.SetReadDeadline(time.Now().Add(30 * time.Second)))
	length, err := connection.Read(buffer)
	check(err)
	fmt.Printf("received %s\n", buffer[:length])
	check(connection.Close())
}

func server(address *net.UDPAddr, config *dtls.Config) {
	listener, err := dtls.Listen("udp", address, config)
	check(err)
	connection, err := listener.Accept()
	check(err)
	fmt.Println("connected")
	buffer := make([]byte, 2048)
	for {
		length, err := connection.Read(buffer)
		if err != nil {
			fmt.Println("closed")
			return
		}
		fmt.Printf("received %s\n", buffer[:length])
		_, err = connection.Write(append([]byte("heard "), buffer[:length]...))
		check(err)
	}
}

func number(text string) uint64 {
	value, err := strconv.ParseUint(text, 0, 16)
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}
