package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// admits tells whether a client that shows these certificates would be let in today.
func (c *certSource) admits(shown []*x509.Certificate) bool {
	return c.current.Load().accept(shown) == nil
}

// accept judges a client's certificate: signed by the CA, for clients, not revoked.
func (s *certSet) accept(certs []*x509.Certificate) error {
	if len(certs) == 0 {
		return errors.New("no certificate")
	}
	options := x509.VerifyOptions{Roots: s.pool, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range certs[1:] {
		options.Intermediates.AddCert(c)
	}
	chains, err := certs[0].Verify(options)
	if err != nil {
		return err
	}
	for _, chain := range chains {
		if !s.holdsRevoked(chain) {
			return nil
		}
	}
	return fmt.Errorf("certificate of %s is revoked", certs[0].Subject)
}

func (s *certSet) holdsRevoked(chain []*x509.Certificate) bool {
	for _, c := range chain {
		if s.revoked[revocation{string(c.RawIssuer), c.SerialNumber.String()}] {
			return true
		}
	}
	return false
}

// revocation names a revoked certificate.
type revocation struct{ issuer, serial string }

// parseRevocations reads the revocation lists among the certificates in text; each must
// be signed by one of the authorities there.
func parseRevocations(file string, text []byte, authorities []namedCert) (map[revocation]bool, error) {
	revoked := map[revocation]bool{}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return revoked, nil
		}
		if block.Type != "X509 CRL" {
			continue
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("revocation list in %s: %w", file, err)
		}
		if !signedByOne(list, authorities) {
			return nil, fmt.Errorf("revocation list of %s in %s: its CA is not in the file, or has not signed it", list.Issuer, file)
		}
		for _, entry := range list.RevokedCertificateEntries {
			revoked[revocation{string(list.RawIssuer), entry.SerialNumber.String()}] = true
		}
	}
}

func signedByOne(list *x509.RevocationList, authorities []namedCert) bool {
	for _, a := range authorities {
		if list.CheckSignatureFrom(a.Certificate) == nil {
			return true
		}
	}
	return false
}
