//! Signing keys: P-256 and K-256, and signatures in their one accepted form (AT Protocol, "Cryptography").
//!
//! Keys are read as `did:key`, as Multikey (base58btc with a multicodec), or as the legacy verification methods with a bare
//! SEC1 point. Signatures are 64 bytes `r || s` over SHA-256 with low S, for both curves; DER and high S are refused.

use k256::ecdsa::signature::Verifier;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

/// Multicodec of a compressed K-256 key.
const K256_CODEC: [u8; 2] = [0xe7, 0x01];
/// Multicodec of a compressed P-256 key.
const P256_CODEC: [u8; 2] = [0x80, 0x24];

/// A public key of either curve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// secp256k1.
    K256(k256::ecdsa::VerifyingKey),
    /// NIST P-256.
    P256(p256::ecdsa::VerifyingKey),
}

/// Which curve a legacy verification method names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// `EcdsaSecp256k1VerificationKey2019`.
    K256,
    /// `EcdsaSecp256r1VerificationKey2019`.
    P256,
}

impl PublicKey {
    /// Reads `did:key:z...`.
    #[must_use]
    pub fn from_did_key(text: &str) -> Option<Self> {
        Self::from_multikey(text.strip_prefix("did:key:")?)
    }

    /// Reads a Multikey: `z`, base58btc, multicodec, compressed point.
    #[must_use]
    pub fn from_multikey(text: &str) -> Option<Self> {
        let bytes = base58(text)?;
        let (codec, point) = bytes.split_at_checked(2)?;
        if point.len() != 33 {
            return None;
        }
        match <[u8; 2]>::try_from(codec).ok()? {
            K256_CODEC => Self::from_point(Curve::K256, point),
            P256_CODEC => Self::from_point(Curve::P256, point),
            _ => None,
        }
    }

    /// Reads the key of a legacy verification method: `z`, base58btc, SEC1 point, compressed or not.
    #[must_use]
    pub fn from_legacy(curve: Curve, text: &str) -> Option<Self> {
        Self::from_point(curve, &base58(text)?)
    }

    fn from_point(curve: Curve, point: &[u8]) -> Option<Self> {
        match curve {
            Curve::K256 => k256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok().map(Self::K256),
            Curve::P256 => p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok().map(Self::P256),
        }
    }

    /// The key as `did:key:z...`.
    #[must_use]
    pub fn to_did_key(&self) -> String {
        let mut bytes = Vec::with_capacity(35);
        match self {
            Self::K256(key) => {
                bytes.extend(K256_CODEC);
                bytes.extend_from_slice(key.to_sec1_point(true).as_bytes());
            }
            Self::P256(key) => {
                bytes.extend(P256_CODEC);
                bytes.extend_from_slice(key.to_sec1_point(true).as_bytes());
            }
        }
        format!("did:key:z{}", bs58::encode(bytes).into_string())
    }

    /// Whether `signature` is this key's over `message`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), &'static str> {
        if signature.len() != 64 {
            return Err("it is not 64 bytes of r and s");
        }
        let malformed = "r or s is out of range";
        let high = "its s is not the low one";
        let wrong = "it was not made with the key of the DID document";
        match self {
            Self::K256(key) => {
                let parsed =
                    k256::ecdsa::Signature::from_slice(signature).map_err(|_| malformed)?;
                if parsed.normalize_s() != parsed {
                    return Err(high);
                }
                key.verify(message, &parsed).map_err(|_| wrong)
            }
            Self::P256(key) => {
                let parsed =
                    p256::ecdsa::Signature::from_slice(signature).map_err(|_| malformed)?;
                if parsed.normalize_s() != parsed {
                    return Err(high);
                }
                // ring is five times as fast on this curve; it takes any s, which is why s was looked at before.
                let point = key.to_sec1_point(false);
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point.as_bytes());
                key.verify(message, signature).map_err(|_| wrong)
            }
        }
    }
}

/// Decodes multibase base58btc of at most one uncompressed key.
fn base58(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix('z').filter(|digits| digits.len() <= 100)?;
    bs58::decode(digits).into_vec().ok()
}
